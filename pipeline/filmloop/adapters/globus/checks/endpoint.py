"""The endpoint: is it online, does it take our options, can its side do what a training needs?"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from filmloop.adapters.globus.checks import over_there, queue
from filmloop.adapters.globus.checks.calling import Caller, answer_of, beside_the_queue, why
from filmloop.adapters.globus.checks.node import check_node
from filmloop.adapters.globus.checks.side import Sample, folder_finding, question, versions_finding
from filmloop.adapters.globus.compute import versions
from filmloop.adapters.globus.compute.client import Compute
from filmloop.config.globus import GlobusLauncher
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import FilmloopError
from filmloop.core.finding import Finding

_log = logging.getLogger(__name__)


def check_endpoint(config: SiteConfig, *, sample: Sample | None, job: bool) -> Iterator[Finding]:
    """Look at the endpoint, from there, and from a node.

    Args:
        config: The site.
        sample: What has to be found below the cluster's host_path.
        job: Send short functions through the queue, too.
    """
    section = config.launcher
    assert isinstance(section, GlobusLauncher)
    compute = Compute(section, config.globus)
    if not compute.is_online():
        yield Finding(
            "endpoint", "fail", f"{section.endpoint} is offline",
            "On the cluster, where it is set up: globus-compute-endpoint start filmloop",
        )  # fmt: skip
        return
    yield Finding("endpoint", "ok", f"{section.endpoint} is online")
    function_id, left = compute.register(), None
    try:
        caller = Caller(compute, function_id)
        if section.control:
            yield from _beside_the_queue(config, section, caller, sample)
        elif not job:
            yield Finding(
                "functions", "warn", "there is no [launcher.control]: what the cluster's side says shows with a job",
                "filmloop site check --job",
            )  # fmt: skip
        if job:
            yield from check_node(config, section, caller, sample)
    finally:
        left = _forget(compute, function_id)
    if left:
        yield left


def _beside_the_queue(
    config: SiteConfig, section: GlobusLauncher, caller: Caller, sample: Sample | None
) -> Iterator[Finding]:
    """Two short functions: the versions in the Python that trains, the rest in the endpoint's own."""
    place, asked = beside_the_queue(section), queue.question_for(section.options)
    request = question(config, sample) | {"options": dict(section.options), "endpoint": section.endpoint}
    if asked:
        request |= {"queue": list(asked.words), "script": asked.script}
    yield versions_finding("versions", section, caller.call(place, versions.PROBE, section.python))
    told = caller.call(place, over_there.program(request))
    said = answer_of(told)
    if said is None:
        yield Finding("functions", "fail", why(told), "The endpoint's log is in ~/.globus_compute on the cluster.")
        return
    if request["folder"]:
        yield folder_finding(said["folder"], said["file"])
    if said["template"]["seen"]:
        yield _template(said["template"]["wrong"])
    if asked:
        fine, words = queue.judge(section.options, said["queue"]["code"], said["queue"]["said"])
        hint = "" if fine else "Mend account, queue and walltime in [launcher.options]; ask the facility what they are."
        yield Finding("queue", "ok" if fine else "fail", words, hint)


def _template(wrong: str) -> Finding:
    if wrong:
        return Finding("job options", "fail", f"the endpoint refuses [launcher.options]: {wrong}", "Mend them there.")
    return Finding("job options", "ok", "the endpoint's template takes [launcher.options]")


def _forget(compute: Compute, function_id: str) -> Finding | None:
    """Have the service forget our function; what is to be said if it does not."""
    try:
        compute.unregister(function_id)
    except FilmloopError as exc:
        _log.error("Function %s stays registered: %s", function_id, exc.message)
        return Finding(
            "functions", "warn", f"function {function_id} stays registered with Globus Compute: {exc.message}",
            "Nothing depends on it: it holds no secret, and no one else can call it.",
        )  # fmt: skip
    return None
