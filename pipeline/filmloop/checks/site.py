"""All checks of a site, cheap ones first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from filmloop.bootstrap import Site, open_launcher
from filmloop.checks import local, registry, source, this_machine
from filmloop.checks.globus import check_globus
from filmloop.core.errors import FilmloopError
from filmloop.core.finding import Finding

Look = Callable[[Site], Finding]


def check_site(site: Site, *, job: bool = False) -> Generator[Finding, None, None]:
    """Yield the findings one by one. A generator that is closed early cleans up what it has begun.

    Args:
        site: The site.
        job: Send a short function through the cluster's queue, where the launcher is Globus'.
    """
    yield Finding(item="site file", state="ok", detail=f"{site.file}: site {site.config.site!r}")
    yield from _each(
        site,
        ("python", this_machine.python),
        ("packages", this_machine.packages),
        ("state folder", this_machine.home),
        ("model", this_machine.model),
        ("runtime", this_machine.runtime),
        ("ring", this_machine.ring),
        ("source", source.source),
    )
    mover, launcher = site.config.mover.kind, site.config.launcher.kind
    if mover == "local":
        yield from _each(site, ("mover", local.mover))
    if launcher == "local":
        yield from _each(site, ("launcher", local.launcher))
    elif launcher != "globus":
        yield from _batch(site)
    if "globus" in (mover, launcher):
        yield from _globus(site, job)
    yield from _each(site, ("registry", registry.registry))


def _each(site: Site, *looks: tuple[str, Look]) -> Iterator[Finding]:
    for item, look in looks:
        try:
            yield look(site)
        except FilmloopError as exc:
            yield Finding(item=item, state="fail", detail=exc.message, hint=exc.hint)


def _globus(site: Site, job: bool) -> Iterator[Finding]:
    try:
        yield from check_globus(site, job=job)
    except FilmloopError as exc:
        yield Finding(item="Globus", state="fail", detail=exc.message, hint=exc.hint)


def _batch(site: Site) -> Iterator[Finding]:
    from filmloop.adapters.batch.check import check_batch
    from filmloop.adapters.batch.launcher import BatchLauncher

    launcher = open_launcher(site)
    assert isinstance(launcher, BatchLauncher)
    yield from check_batch(
        launcher.dialect, launcher.section, runs=site.home.cluster / "runs", deadline_s=site.config.training.deadline_s
    )
