"""A site that works through Globus: keys, identity, both collections, a file there and back, the endpoint, the queue.

What a check has begun it ends: a file that was sent is deleted on both sides, also after Ctrl-C or a failure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from importlib.metadata import version

from filmloop.bootstrap import Site, prepare_globus
from filmloop.checks.probe import Probe
from filmloop.config.globus import GlobusLauncher
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.core.errors import FilmloopError
from filmloop.core.finding import Finding

_SDKS = {"globus_sdk": "globus-sdk", "globus_compute_sdk": "globus-compute-sdk"}


def check_globus(site: Site, *, job: bool = False) -> Generator[Finding, None, None]:
    """Yield the findings; what needs something that has failed is left out.

    Args:
        site: With a mover or a launcher of the kind `globus`.
        job: Send a short function through the queue, too.
    """
    if not (missing := [name for module, name in _SDKS.items() if importlib.util.find_spec(module) is None]):
        yield Finding(
            item="Globus SDKs", state="ok", detail=", ".join(f"{name} {version(name)}" for name in _SDKS.values())
        )
    else:
        yield Finding(
            item="Globus SDKs", state="fail", detail=f"not installed: {', '.join(missing)}",
            hint="pip install -c constraints.txt -e '.[globus]'",
        )  # fmt: skip
    yield _keys(site)
    if missing or not site.config.globus.client_id:
        return
    yield from _asked(site, job)


def _asked(site: Site, job: bool) -> Iterator[Finding]:
    from filmloop.adapters.globus.checks.collections import check_collections
    from filmloop.adapters.globus.checks.endpoint import check_endpoint
    from filmloop.adapters.globus.checks.identity import check_identity

    prepare_globus(site)
    mover, launcher = site.config.mover, site.config.launcher
    fine = True
    for finding in check_identity(site.config):
        fine &= finding.state != "fail"
        yield finding
    if not fine:
        return
    probe: Probe | None = None
    with ExitStack() as stack:
        if isinstance(mover, MoverSection) and not mover.missing:
            for finding in check_collections(site.config):
                fine &= finding.state != "fail"
                yield finding
            if fine:
                probe = stack.enter_context(Probe(site, mover))
                yield from probe.there_and_back()
        if isinstance(launcher, GlobusLauncher) and launcher.endpoint:
            try:
                yield from check_endpoint(site.config, sample=probe.sample if probe else None, job=job)
            except FilmloopError as exc:
                yield Finding(item="endpoint", state="fail", detail=exc.message, hint=exc.hint)
    if probe and probe.left:
        yield Finding(item="clean-up", state="fail", detail=probe.left.message, hint=probe.left.hint)


def _keys(site: Site) -> Finding:
    """Every key that a person still has to fill in."""
    empty = site.config.empty_keys
    if not empty:
        return Finding(item="Globus keys", state="ok", detail="none is empty that must not be")
    return Finding(
        item="Globus keys", state="fail", detail=f"empty in {site.file.name}: {', '.join(empty)}",
        hint="docs/howto/two-facilities.md says where each is from.",
    )  # fmt: skip
