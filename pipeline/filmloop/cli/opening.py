"""The registry, for commands that look something up in it."""

from __future__ import annotations

from filmloop.bootstrap import Site, open_registry, registry_is_new
from filmloop.cli.output import err
from filmloop.ports.registry import Registry, none_yet


def registry_of(site: Site) -> Registry:
    """The site's registry. A server that is started for it stays, which is said on stderr.

    Raises:
        DataError: it was never started, so there is no version; it is not started to say so.
        FilmloopError: as `bootstrap.open_registry`.
    """
    if registry_is_new(site):
        raise none_yet(site.config.registered_model)
    return open_registry(site, start=True, tell=say)


def say(step: str, text: str) -> None:
    """One line on stderr."""
    err.print(f"{step}: {text}", markup=False)
