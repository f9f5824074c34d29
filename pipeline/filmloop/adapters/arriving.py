"""A registry that is on its way: its server starts, or its client loads, while a cycle begins."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from filmloop.core.documents import VersionInfo
from filmloop.ports.registry import Registry


class ArrivingRegistry:
    """The promises of `ports.registry.Registry`; a call waits until the registry is there.

    One that is made anew is known to hold nothing: until it is there, nobody waits to be told so.

    Args:
        model: Registered model name.
        arriving: Gives the registry, or what kept it from coming, which every call then raises.
        is_new: Whether it is made anew.
    """

    def __init__(self, model: str, arriving: Future[Registry], *, is_new: bool) -> None:
        self.model = model
        self._arriving, self._is_new = arriving, is_new

    @property
    def url(self) -> str:
        """See `Registry.url`."""
        return self._arriving.result().url

    def register(
        self, bundle: Path, *, key: str, description: str, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> VersionInfo:
        """See `Registry.register`."""
        return self._arriving.result().register(bundle, key=key, description=description, tags=tags, metrics=metrics)

    def get(self, version_or_alias: str) -> VersionInfo | None:
        """See `Registry.get`."""
        return None if self._is_surely_empty() else self._arriving.result().get(version_or_alias)

    def versions(self, *, after: int = 0) -> list[VersionInfo]:
        """See `Registry.versions`."""
        return [] if self._is_surely_empty() else self._arriving.result().versions(after=after)

    def download(self, version: str, target: Path) -> Path:
        """See `Registry.download`."""
        return self._arriving.result().download(version, target)

    def set_alias(self, alias: str, version: str) -> None:
        """See `Registry.set_alias`."""
        self._arriving.result().set_alias(alias, version)

    def annotate(self, version: str, *, description: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """See `Registry.annotate`."""
        self._arriving.result().annotate(version, description=description, tags=tags)

    def _is_surely_empty(self) -> bool:
        return self._is_new and not self._arriving.done()
