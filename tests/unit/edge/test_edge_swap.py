"""The watcher of the champion alias: what it offers, when, and what it remembers."""

from __future__ import annotations

import shutil
import time

import pytest

from filmloop import bundle as names
from filmloop.config.paths import Home
from filmloop.core.errors import TransientError
from filmloop.edge import models, swap
from filmloop.edge.models import ModelStore
from filmloop.edge.swap import ModelWatcher, Offer
from filmloop.ports.registry import CHAMPION
from filmloop.testing.edge import small_site
from filmloop.testing.fakes import MemoryRegistry
from rigs.waiting import until
from rigs.watching import Told, bundle_of, flip_a_bit, register, serve, watching


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def registry(tmp_path):
    return MemoryRegistry(tmp_path / "registry")


@pytest.mark.parametrize(
    ("live", "said"), [(None, "no version is live yet; frames are staged all the same"), (("7", "d"), "version 7 stays live")]
)  # fmt: skip
def test_a_registry_that_is_away_is_told_with_what_is_live_meanwhile(home, caplog, live, said):
    watcher, _, news = watching(home, None, live)
    with caplog.at_level("WARNING", "filmloop"):
        watcher.start()
        until(lambda: caplog.records)
        watcher.finish()
        watcher.join(5)
    assert said in caplog.text
    assert "registry" in news.last_problem


def test_a_refused_version_is_looked_at_again_later_since_it_may_have_been_torn_on_its_way(
    tmp_path, home, registry, monkeypatch
):
    monkeypatch.setattr(swap, "_REFUSED_FIRST_S", 0.0)
    watcher, offer, news = watching(home, registry)
    bundle = bundle_of(tmp_path, 1)
    version = register(registry, bundle)
    flip_a_bit(tmp_path / "registry" / version)
    watcher.look()
    assert news.swaps_refused == 1
    shutil.copy(bundle / names.WEIGHTS, tmp_path / "registry" / version / names.WEIGHTS)
    watcher.look()
    assert offer.take().runtime.version == version


def test_a_registry_that_is_away_is_no_refusal_and_is_asked_again(tmp_path, home, registry):
    watcher, offer, news = watching(home, registry)
    version = register(registry, bundle_of(tmp_path, 1))
    registry.away = True
    with pytest.raises(TransientError):
        watcher.look()
    registry.away = False
    watcher.look()
    assert offer.take().runtime.version == version
    assert news.swaps_refused == 0


def test_what_is_offered_is_not_what_a_restart_begins_with_until_it_serves(tmp_path, home, registry):
    watcher, offer, _ = watching(home, registry)
    live = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    serve(watcher, offer)
    first, second = (register(registry, bundle_of(tmp_path, seed)) for seed in (2, 3))
    registry.set_alias(CHAMPION, first)
    watcher.look()
    checked = offer.take()
    registry.set_alias(CHAMPION, second)
    watcher.look()
    offer.refuse(checked)
    watcher.look()
    offer.refuse(offer.take())
    watcher.look()
    assert ModelStore(small_site(), home).remembered().runtime.version == live


def test_a_version_that_was_rolled_back_while_it_was_prepared_is_not_offered(tmp_path, home, registry, monkeypatch):
    watcher, offer, news = watching(home, registry)
    live = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    serve(watcher, offer)
    register(registry, bundle_of(tmp_path, 2))
    fetch, made = ModelStore.fetch, []

    def slow(self, *args):
        made.append(fetch(self, *args))
        registry.set_alias(CHAMPION, live)
        return made[-1]

    monkeypatch.setattr(ModelStore, "fetch", slow)
    watcher.look()
    assert len(made) == 1
    assert offer.take() is None
    watcher.look()
    assert len(made) == 1, "what serves is what the alias names"
    assert news.swaps_refused == 0


def test_while_an_offer_is_open_nothing_else_is_prepared_and_no_request_is_swallowed(tmp_path, home, registry):
    """Whoever takes the offer may serve by now: what is prepared then is prepared beside the frames."""
    requests = []
    watcher, offer, _ = watching(home, registry)
    watcher._asked = lambda: bool(requests) and requests.pop()
    register(registry, bundle_of(tmp_path, 1))
    watcher.start()
    until(lambda: offer.open is not None)
    requests.append(True)
    second = register(registry, bundle_of(tmp_path, 2))
    time.sleep(0.3)
    assert offer.open[0] != second
    assert requests == [True]
    offer.accept(offer.take())
    until(lambda: offer.open is not None)
    assert offer.take().runtime.version == second
    watcher.finish()
    watcher.join(5)
    requests[:] = [True]
    watcher._pause()
    assert requests == [True], "one that has ended leaves it to others"


def test_a_live_version_that_the_disk_did_not_take_is_remembered_at_a_later_look(tmp_path, home, registry, monkeypatch):
    watcher, offer, news = watching(home, registry)
    version = register(registry, bundle_of(tmp_path, 1))
    write, tries = models.Live.write, []

    def refusing(self, path):
        tries.append(path)
        if len(tries) <= 2:
            raise TransientError("No space left to write live.json.")
        write(self, path)

    monkeypatch.setattr(models.Live, "write", refusing)
    watcher.look()
    assert serve(watcher, offer) == version, "the disk is no reason to wait"
    assert "No space left" in news.last_problem
    assert ModelStore(small_site(), home).remembered() is None
    watcher.look()
    # Whether the registry answers has nothing to do with it.
    registry.away = True
    with pytest.raises(TransientError):
        watcher.look()
    assert ModelStore(small_site(), home).remembered().runtime.version == version
    registry.away = False
    watcher.look()
    assert len(tries) == 3, "once remembered, it is not written again"


def test_after_a_failure_the_registry_is_looked_for_anew(tmp_path, home, registry):
    moved = MemoryRegistry(tmp_path / "moved")
    places = [registry, moved]
    watcher, offer, _ = watching(home, registry)
    watcher._connect = lambda: places.pop(0)
    watcher.look()
    registry.away = True
    version = register(moved, bundle_of(tmp_path, 1))
    with pytest.raises(TransientError):
        watcher.look()
    watcher.look()
    assert offer.take().runtime.version == version
    watcher.look()
    assert not places, "a registry that answers is kept"


def test_what_was_being_loaded_when_nobody_wants_it_any_more_is_closed(tmp_path, home, registry, monkeypatch):
    register(registry, bundle_of(tmp_path, 1))
    watcher, offer, _ = watching(home, registry)
    closed, fetch = [], ModelStore.fetch

    def slow(self, *args):
        proven = fetch(self, *args)
        watcher.finish()
        monkeypatch.setattr(proven.runtime, "close", lambda: closed.append(proven))
        return proven

    monkeypatch.setattr(ModelStore, "fetch", slow)
    watcher.look()
    assert offer.take() is None
    assert len(closed) == 1


def test_a_look_loads_in_the_way_that_it_is_told_and_wakes_whoever_takes_the_offer(tmp_path, home, registry):
    register(registry, bundle_of(tmp_path, 1))
    woken, loaded = [], []
    offer = Offer(wake=lambda: woken.append(True))

    class Noting:
        def gently(self, work):
            loaded.append(work()[0])
            return work()

        def plainly(self, work):
            return work()

    watcher = ModelWatcher(
        store=ModelStore(small_site(), home),
        registry=lambda: registry,
        offer=offer,
        news=Told(),
        every_s=0.01,
        pace=Noting(),
    )
    watcher.look()
    assert woken == [True]
    assert len(loaded) == 1
    serve(watcher, offer)
    assert len(loaded) == 1
    offer.live = ("0", "d" * 64)
    watcher.look()
    assert len(loaded) == 2, "another version came back to serve: the champion is wanted again"
