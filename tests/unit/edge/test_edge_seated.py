"""Two seats of inference on one ring, each in a thread: they take turns, and every frame is one version's."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from filmloop.core.errors import TransientError
from filmloop.edge.ring import PLACES, SEATS, FrameRing, RingLayout
from filmloop.edge.stages import seated as seated_module
from filmloop.edge.stages.seated import SeatedInference
from filmloop.testing.edge import FRAME_SHAPE, small_site
from rigs.inference import Gain, Store, feed, proven
from rigs.waiting import until


class NeverGentle:
    """Threads of one process share its priority with the test: told of, not done."""

    def __init__(self):
        self.begun, self.said = False, []

    def step_back(self):
        self.said.append("back")

    def come_back(self):
        self.said.append("here")

    def gently(self, work):
        return work()

    plainly = gently


class Alias:
    """A registry with nothing but a champion."""

    def __init__(self, version=None):
        self.version = version

    def get(self, ref):
        if self.version is None:
            return None
        return SimpleNamespace(name="m", version=self.version, bundle_digest=f"d{self.version}")


class Pair:
    """Both seats, on a ring that the test fills as the source does."""

    def __init__(self, ring, alias, stores):
        self.ring, self.alias, self.stores, self.head = ring, alias, stores, 0
        self.stages, self.threads, self.failures = {}, {}, []

    def sit(self, seat):
        place = SEATS[seat]
        self.ring.beats[PLACES.index(place)] = self.ring.ready[seat] = 0
        site = small_site(edge={"watch_every_s": 0.02})
        stage = SeatedInference(place, self.ring, site, store=self.stores[seat], registry=lambda: self.alias)
        self.stages[seat] = stage

        def work():
            try:
                stage.main()
            except BaseException as exc:
                self.failures.append(exc)

        self.threads[seat] = threading.Thread(target=work)
        self.threads[seat].start()
        return stage

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ring.source.write({**self.ring.source.read(), "ended": 1})
        for place in SEATS:
            self.ring.bells[place].ring()
        for thread in self.threads.values():
            thread.join(10)
            assert not thread.is_alive()
        assert self.failures == []

    def feed(self, frames):
        self.head = feed(self.ring, self.head, frames)
        until(lambda: self.ring.inference.get("done") == self.head)

    def says(self, seat):
        return self.ring.boards[SEATS[seat]].read()


@pytest.fixture
def ring():
    ring = FrameRing.new(RingLayout(frames=2048, frame_shape=FRAME_SHAPE, labelled=False))
    yield ring
    ring.close()


@pytest.fixture(autouse=True)
def _no_priorities(monkeypatch):
    monkeypatch.setattr(seated_module, "Gentle", NeverGentle)


def versions(*numbers):
    return {number: proven(Gain(number, 2.0)) for number in numbers}


def test_the_seats_take_turns_and_go_on_behind_each_others_frames(ring):
    made = versions("7", "8", "9")
    stores = [Store(made["7"], made.values()), Store(None, made.values())]
    with Pair(ring, Alias("7"), stores) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        pair.feed(300)
        for turn, version in enumerate(("8", "9"), start=1):
            pair.alias.version = version
            until(lambda turn=turn: ring.inference.get("seat") == turn % 2)
            until(lambda turn=turn: pair.says(turn % 2).get("swaps") == 1)
            pair.feed(300)
        assert ring.version_F[:900].tolist() == [7] * 300 + [8] * 300 + [9] * 300
        assert [pair.says(seat).get("swaps", 0) for seat in (0, 1)] == [1, 1]
        assert ring.serving == "inference"
    assert ring.inference.read() == {
        "done": 900, "inferred": 900, "no_model": 0, "stopped": 0, "ended": 1, "seat": 0,
    }  # fmt: skip
    assert stores[0].remembered_as == ["8"]
    assert stores[1].remembered_as == ["7", "9"], "whoever stands by remembers what serves"
    assert made["7"].runtime.closed
    assert made["8"].runtime.closed
    assert not made["9"].runtime.closed


def test_frames_that_keep_coming_are_each_inferred_once_by_one_version(ring):
    made = versions(*map(str, range(1, 30)))
    with Pair(ring, Alias("1"), [Store(made["1"], made.values()), Store(None, made.values())]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "1")
        pair.sit(1)
        seen = []
        for block in range(120):
            if block % 6 == 5:
                pair.alias.version = str(2 + block // 6)
            pair.feed(64)
            at = np.arange(pair.head - 64, pair.head) % ring.frames
            seen += ring.version_F[at].tolist()
            time.sleep(0.005)
        swaps = sum(pair.says(seat).get("swaps", 0) for seat in (0, 1))
    assert seen == sorted(seen), "no frame went back to an older version"
    assert len(set(seen)) >= 8
    assert swaps >= len(set(seen)) - 1
    assert ring.inference.get("inferred") == len(seen) == 120 * 64


def test_a_first_version_is_served_by_the_seat_that_stood_by(ring):
    made = versions("1")
    with Pair(ring, Alias(), [Store(), Store(None, made.values())]) as pair:
        pair.sit(0)
        pair.sit(1)
        pair.feed(50)
        pair.alias.version = "1"
        until(lambda: pair.says(1).get("version") == "1")
        pair.feed(50)
    assert ring.version_F[:100].tolist() == [0] * 50 + [1] * 50
    assert ring.inference.get("no_model") == 50


def test_a_version_that_does_not_serve_what_it_should_is_refused_and_the_other_seat_goes_on(ring):
    liar = proven(Gain("8", 2.0, served=3.0))
    made = versions("7")
    with Pair(ring, Alias("7"), [Store(made["7"]), Store(None, [liar])]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        pair.alias.version = "8"
        until(lambda: pair.says(1).get("swaps_refused") == 1)
        pair.feed(100)
        assert "8 refused" in pair.says(1)["problem"]
        assert ring.ready.tolist() == [0, 0]
        assert liar.runtime.closed
    assert (ring.version_F[:100] == 7).all()
    assert ring.serving == "inference"


def test_a_seat_that_was_given_the_turn_and_killed_serves_what_was_live_last_in_its_next_life(ring):
    made = versions("8")
    ring.inference.write({**ring.inference.read(), "seat": 1})
    with Pair(ring, Alias("8"), [Store(), Store(made["8"])]) as pair:
        pair.sit(0)
        pair.sit(1)
        pair.feed(100)
        assert ring.serving == "inference_2"
    assert (ring.version_F[:100] == 8).all()
    assert pair.says(1).get("swaps", 0) == 0


def test_a_turn_without_anything_prepared_is_taken_with_what_was_live_last(ring):
    made = versions("7", "8")
    with Pair(ring, Alias("7"), [Store(made["7"]), Store(made["8"])]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        until(lambda: ring.beats[PLACES.index(SEATS[1])] > 0)
        ring.ready[1] = 8  # of a former life, just before it was killed
        until(lambda: pair.says(1).get("version") == "8")
        pair.alias.version = "8"
        pair.feed(100)
    assert (ring.version_F[:100] == 8).all()


def test_what_serves_is_looked_at_again_when_the_other_seat_came_back_with_another_version(ring, monkeypatch):
    monkeypatch.setattr(seated_module, "_ASK_EVERY_S", 0.02)
    with Pair(ring, Alias("8"), [Store(versions("8")["8"]), Store(None, versions("8").values())]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "8")
        pair.sit(1)
        until(lambda: ring.beats[PLACES.index(SEATS[1])] > 0)
        time.sleep(0.1)
        assert ring.serving == "inference", "what the alias names is live already"
        # As if it was killed, and started with what it remembered: an older version.
        pair.stages[0].news.say(version="7", bundle_digest="d7")
        until(lambda: ring.serving == "inference_2")
        until(lambda: pair.says(1).get("version") == "8")


def test_whoever_reads_when_the_turn_has_just_changed_reads_of_the_version_that_serves_now(ring, monkeypatch):
    begin, read = SeatedInference._begin, []

    def late(self, prepared):
        if prepared is not None:
            read.append(ring.boards[ring.serving].read())
        begin(self, prepared)

    monkeypatch.setattr(SeatedInference, "_begin", late)
    made = versions("7", "8", "9", "10")
    with Pair(ring, Alias("7"), [Store(made["7"], made.values()), Store(None, made.values())]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        for swaps, version in enumerate(("8", "9", "10"), start=1):
            pair.feed(100)  # scored: what is said of them is of this version
            pair.alias.version = version
            until(lambda swaps=swaps: sum(pair.says(seat).get("swaps", 0) for seat in (0, 1)) == swaps)
    assert [told["version"] for told in read] == ["8", "9", "10"]
    assert all(told["quality"] is None and told["drift"] is None for told in read)
    since = [told["version_since_utc"] for told in read]
    assert since == sorted(since)
    assert len(set(since)) == 3, "not that of the last time that this seat served"


def test_batches_under_way_are_finished_before_the_turn_changes_and_none_is_inferred_twice(ring):
    made = {number: proven(Gain(number, 2.0, lanes=3, pause_s=0.002)) for number in map(str, range(1, 9))}
    with Pair(ring, Alias("1"), [Store(made["1"], made.values()), Store(None, made.values())]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "1")
        pair.sit(1)
        for version in map(str, range(2, 9)):
            pair.alias.version = version
            for _ in range(8):  # frames wait all the time
                pair.head = feed(ring, pair.head, 128)
                until(lambda: pair.head - ring.inference.get("done") < 512)
            until(lambda version=version: pair.says(SEATS.index(ring.serving)).get("version") == version)
        until(lambda: ring.inference.get("done") == pair.head)
    inferred = sum(sum(each.runtime.started) for each in made.values())
    # The remembered one is checked once, each that relieves another once: by as many frames as the golden pair has.
    checked = len(made) * len(made["1"].counts_NCE)
    assert ring.inference.get("inferred") == pair.head == inferred - checked


def test_a_seat_that_is_ready_and_shows_no_life_is_not_given_the_turn(ring, monkeypatch):
    made = versions("7", "8")
    with Pair(ring, Alias("7"), [Store(made["7"]), Store(made["8"])]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        ring.beats[PLACES.index(SEATS[1])] = time.monotonic_ns() - int(9e9)
        ring.ready[1] = 8
        pair.feed(100)
        time.sleep(0.3)
        assert ring.serving == "inference"
        ring.ready[1] = 0


def test_a_new_life_leaves_to_the_other_seat_what_that_has_prepared_and_loads_nothing(ring):
    made = versions("7", "8")
    first, second = Store(made["7"], made.values()), Store(None, made.values())
    first.remembered = lambda: pytest.fail("loaded for nothing")
    with Pair(ring, Alias("8"), [first, second]) as pair:
        pair.sit(1)
        until(lambda: ring.ready[1] == 8)
        pair.sit(0)
        pair.feed(100)
    assert (ring.version_F[:100] == 8).all()


def test_what_a_disk_did_not_take_at_a_swap_is_remembered_later(ring):
    made, full = versions("7", "8"), threading.Event()
    full.set()

    class Sulking(Store):
        def remember(self, version, digest):
            if full.is_set():
                raise TransientError("No space left.")
            super().remember(version, digest)

    stores = [Sulking(made["7"], made.values()), Sulking(None, made.values())]
    with Pair(ring, Alias("7"), stores) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        pair.alias.version = "8"
        until(lambda: ring.serving == "inference_2")
        until(lambda: "a restart would not know" in pair.says(0).get("problem", ""))
        full.clear()
        until(lambda: stores[0].remembered_as == ["8"])


def test_how_long_frames_waited_in_a_former_turn_is_not_told_of_the_next_one(ring):
    made = versions("7", "8", "9")
    with Pair(ring, Alias("7"), [Store(made["7"], made.values()), Store(None, made.values())]) as pair:
        pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        pair.sit(1)
        made["7"].runtime.pause_s = 1.5
        pair.feed(32)
        until(lambda: pair.says(0).get("latency_p99_ms", 0) > 1500)
        for version, seat in (("8", 1), ("9", 0)):
            pair.alias.version = version
            until(lambda seat=seat: ring.serving == SEATS[seat])
        counted = sum(pair.says(0)["latency_counts"].values())
        until(lambda: (pair.feed(32), sum(pair.says(0)["latency_counts"].values()) > counted + 20)[1])
        assert 0 < pair.says(0)["latency_p99_ms"] < 1500


def test_a_seat_gives_way_while_it_stands_by_and_has_its_priority_before_it_says_that_it_is_ready(ring):
    made = versions("7", "8")
    with Pair(ring, Alias("7"), [Store(made["7"]), Store(None, made.values())]) as pair:
        first = pair.sit(0)
        until(lambda: pair.says(0).get("version") == "7")
        second = pair.sit(1)
        said = second._gentle.said
        until(lambda: said)
        assert said == ["back"]
        assert first._gentle.said == ["here"]
        second.ring = watched = Watched(ring, said)
        pair.alias.version = "8"
        until(lambda: ring.serving == "inference_2")
        until(lambda: first._gentle.said[-1] == "back")
    assert watched.at_ready == ["back", "here"]


class Watched:
    """A ring that notes what was said when a seat became ready."""

    def __init__(self, ring, said):
        self._ring, self._said, self.at_ready = ring, said, None

    @property
    def ready(self):
        if self.at_ready is None and "here" in self._said:
            self.at_ready = list(self._said)
        return self._ring.ready

    def __getattr__(self, name):
        return getattr(self._ring, name)
