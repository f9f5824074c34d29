"""The endpoint: is it online, does it take our options, can its side do what a training needs?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from filmloop.adapters.globus.checks import over_there, queue
from filmloop.adapters.globus.compute import versions
from filmloop.adapters.globus.compute.client import Compute, Options, Told
from filmloop.config.globus import GlobusLauncher, GlobusMover
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import AuthError, FilmloopError
from filmloop.core.finding import Finding
from filmloop.core.retry import wait_until

_ANSWER_S = 240.0
"""A first short function waits for processes on a login node that is busy."""
_PATIENCE_S = 170.0
"""Slurm's accounting may take two minutes to answer, and the template asks it."""
_OWNER = "An own endpoint is for the identity alone that has started it: with its GLOBUS_COMPUTE_CLIENT_ID and _SECRET."
_MIN_FREE_BYTES = 10_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A file that was sent to the cluster: where it has to be, below the cluster's folder, and its bytes' hash."""

    path: str
    sha256: str


def check_endpoint(config: SiteConfig, *, sample: Sample | None, job: bool) -> Iterator[Finding]:
    """Look at the endpoint and from there.

    Args:
        config: The site.
        sample: What has to be found below the cluster's host_path.
        job: Send a short function through the queue, too.
    """
    section = config.launcher
    assert isinstance(section, GlobusLauncher)
    compute = Compute(section, config.globus)
    if not compute.is_online():
        yield _finding(
            "endpoint", "fail", f"{section.endpoint} is offline",
            "On the cluster, where it is set up: globus-compute-endpoint start filmloop",
        )  # fmt: skip
        return
    yield _finding("endpoint", "ok", f"{section.endpoint} is online")
    with _function(compute) as function_id:
        caller = _Caller(compute, function_id)
        if section.control:
            yield from _seen_from_there(config, section, caller, sample, section.control, _ANSWER_S)
        elif not job:
            yield _finding(
                "functions", "warn", "there is no [launcher.control]: what the cluster's side says shows with a job",
                "filmloop site check --job",
            )  # fmt: skip
        if job:
            yield from _through_the_queue(config, section, caller, None if section.control else sample)


def _seen_from_there(
    config: SiteConfig, section: GlobusLauncher, caller: _Caller, sample: Sample | None, options: Options, wait_s: float
) -> Iterator[Finding]:
    """Two short functions: the versions in the Python that trains, the rest in the endpoint's own."""
    asked = queue.question_for(section.options) if section.control else None
    request = {
        "folder": config.mover.cluster.host_path if isinstance(config.mover, GlobusMover) else "",
        "file": sample.path if sample else "",
        "sha256": sample.sha256 if sample else "",
        "queue": list(asked.words) if asked else [],
        "script": asked.script if asked else "",
        "options": dict(section.options) if section.control else {},
        "endpoint": section.endpoint,
    }
    yield _versions(section, caller, options, wait_s)
    told = caller.call(over_there.program(request), "", options, wait_s)
    said = (told.result or {}).get("answer")
    if not isinstance(said, dict):
        yield _finding("functions", "fail", _why(told), "The endpoint's log is in ~/.globus_compute on the cluster.")
        return
    if request["folder"]:
        yield folder_finding(said["folder"], said["file"])
    if said["template"]["seen"]:
        yield _template(said["template"]["wrong"])
    if asked:
        fine, words = queue.judge(section.options, said["queue"]["code"], said["queue"]["said"])
        hint = "" if fine else "Mend account, queue and walltime in [launcher.options]; ask the facility what they are."
        yield _finding("queue", "ok" if fine else "fail", words, hint)


def _versions(section: GlobusLauncher, caller: _Caller, options: Options, wait_s: float) -> Finding:
    told = caller.call(versions.PROBE, section.python, options, wait_s)
    result = told.result or {}
    training = result.get("answer")
    if not isinstance(training, dict):
        return _finding(
            "versions", "fail", f"the endpoint cannot run {section.python or 'its own Python'}: {_why(told)}",
            "Set [launcher] python to an interpreter on the cluster that has filmloop[hpc].",
        )  # fmt: skip
    found = versions.compare(versions.here(), result.get("worker", {}), training)
    if found.problems:
        texts, hints = zip(*found.problems, strict=True)
        return _finding("versions", "fail", " ".join(texts), " ".join(dict.fromkeys(hints)))
    known = ", ".join(f"{name} {training[name]}" for name in ("filmloop", "torch", "zarr") if training.get(name))
    notes = f" ({'; '.join(found.notes)})" if found.notes else ""
    return _finding("versions", "ok", f"{training.get('executable')}: Python {training.get('python')}, {known}{notes}")


def folder_finding(folder: dict[str, Any], file: dict[str, Any]) -> Finding:
    """What the cluster's side says of the folder and of a file that was sent there, as `over_there` answers."""
    item = "cluster folder"
    if folder["wrong"]:
        return _finding(
            item, "fail", folder["wrong"],
            "Make it there, for the account that the endpoint runs as, or set host_path in [mover.cluster].",
        )  # fmt: skip
    if file["wrong"]:
        return _finding(
            item, "fail", f"what the collection took is not there: {file['wrong']}",
            "collection, path and host_path of [mover.cluster] have to name one folder.",
        )  # fmt: skip
    if file["owner"] not in ("", folder["user"]):
        # An endpoint's processes have the umask 077: what they write is for their own account.
        return _finding(
            item, "warn", f"the collection writes as {file['owner']}, the endpoint runs as {folder['user']}",
            "Results may not be readable for the collection: run the endpoint as the collection's owner.",
        )  # fmt: skip
    free = folder["free_bytes"]
    hint = "" if free > _MIN_FREE_BYTES else "Make room there; each cycle brings its frames."
    detail = f"{folder['user']} can write, {free / 1e9:.0f} GB free" + (
        ", the sent file is there" if file["owner"] else ""
    )
    return _finding(item, "warn" if hint else "ok", detail, hint)


def _template(wrong: str) -> Finding:
    if wrong:
        return _finding("job options", "fail", f"the endpoint refuses [launcher.options]: {wrong}", "Mend them there.")
    return _finding("job options", "ok", "the endpoint's template takes [launcher.options]")


def _through_the_queue(
    config: SiteConfig, section: GlobusLauncher, caller: _Caller, sample: Sample | None
) -> Iterator[Finding]:
    wait_s = section.queue_wait_s
    if not section.control:
        yield from _seen_from_there(config, section, caller, sample, section.options, wait_s)
        return
    resources = {"num_nodes": section.nodes, "ranks_per_node": 1} if section.nodes > 1 else None
    told = caller.call(versions.PROBE, "", section.options, wait_s, resources=resources)
    host = (told.result or {}).get("worker", {}).get("host", "")
    if host:
        yield _finding("job", "ok", f"a short function went through the queue and ran on {host}")
    else:
        yield _finding("job", "fail", _why(told), "Its scripts and logs are in ~/.globus_compute/uep.*/submit_scripts.")


class _Caller:
    """Calls the registered function and waits for its answer."""

    def __init__(self, compute: Compute, function_id: str) -> None:
        self._compute, self._function_id = compute, function_id

    def call(
        self, probe: str, python: str, options: Options, wait_s: float, *, resources: dict[str, Any] | None = None
    ) -> Told:
        request = {"do": "versions", "probe": probe, "python": python, "patience_s": _PATIENCE_S}
        try:
            sent = self._compute.submit(self._function_id, request, options=options, resources=resources)
        except AuthError as exc:
            raise AuthError(exc.message, hint=f"{_OWNER} {exc.hint}", ids=exc.ids) from exc
        return wait_until(
            lambda: None if (told := self._compute.ask(sent.task_id)).state == "pending" else told,
            deadline_s=wait_s,
            what="The answer of a short function",
            hint="Does the endpoint's engine wait in the queue, or is its host busy? Its log on the cluster says more.",
            first_s=0.2,
            cap_s=2.0,
        )


@contextmanager
def _function(compute: Compute) -> Iterator[str]:
    """The launcher's function under an id of its own, which the service forgets afterwards."""
    function_id = compute.register()
    try:
        yield function_id
    finally:
        with suppress(FilmloopError):
            compute.unregister(function_id)


def _why(told: Told) -> str:
    result = told.result or {}
    words = told.failure.strip() or f"{result.get('none', '')} {result.get('said', '')}".strip()
    return (words.rpartition("\n")[2] or "no answer")[:1000]


def _finding(item: str, state: Any, detail: str, hint: str = "") -> Finding:
    return Finding(item=item, state=state, detail=detail, hint=hint)
