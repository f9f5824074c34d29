"""A registry that is on its way: what is known of it before, and that nothing else is said without it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from filmloop.adapters.arriving import ArrivingRegistry
from filmloop.core.errors import ConfigError
from filmloop.ports.registry import CHAMPION, Registry
from filmloop.testing.bundles import make_bundle
from filmloop.testing.fakes import MemoryRegistry


@pytest.fixture
def stored(tmp_path: Path) -> MemoryRegistry:
    """With a champion."""
    registry = MemoryRegistry(tmp_path / "registry")
    make_bundle(tmp_path / "bundle")
    version = registry.register(tmp_path / "bundle", key="c1", description="", tags={}, metrics={}).version
    registry.set_alias(CHAMPION, version)
    return registry


def test_one_that_is_made_anew_is_empty_until_it_is_there(stored: MemoryRegistry) -> None:
    arriving: Future[Registry] = Future()
    registry = ArrivingRegistry("m", arriving, is_new=True)
    assert (registry.get(CHAMPION), registry.versions()) == (None, [])
    arriving.set_result(stored)  # somebody else was quicker: what is there counts
    champion = registry.get(CHAMPION)
    assert champion is not None
    assert [each.version for each in registry.versions()] == [champion.version]


def test_one_that_was_there_before_is_waited_for(stored: MemoryRegistry) -> None:
    arriving: Future[Registry] = Future()
    registry = ArrivingRegistry("m", arriving, is_new=False)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(registry.get, CHAMPION)
        with pytest.raises(TimeoutError):
            asked.result(timeout=0.2)
        arriving.set_result(stored)
        champion = asked.result(timeout=10)
    assert champion is not None
    assert registry.url == stored.url


@pytest.mark.parametrize("is_new", [True, False])
def test_what_kept_it_from_coming_is_said(is_new: bool) -> None:
    arriving: Future[Registry] = Future()
    arriving.set_exception(ConfigError("Port 5050 is in use."))
    registry = ArrivingRegistry("m", arriving, is_new=is_new)
    for ask in (lambda: registry.get(CHAMPION), registry.versions, lambda: registry.url):
        with pytest.raises(ConfigError, match="Port 5050"):
            ask()
