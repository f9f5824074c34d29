from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from filmloop.config.schema import DriftSection
from filmloop.core.errors import VerificationError
from filmloop.edge.drift import DriftMonitor
from filmloop.edge.ring import NOT_INFERRED, FrameRing, RingLayout
from filmloop.edge.stages.inference import InferenceStage
from filmloop.edge.swap import ModelWatcher
from filmloop.ports.registry import CHAMPION
from filmloop.testing.edge import FRAME_SHAPE, pool, small_site
from rigs.inference import GOLDEN_NCE, SORT_KEY, Gain, Store, feed, proven
from rigs.waiting import until


@pytest.fixture
def ring():
    ring = FrameRing.new(RingLayout(frames=1024, frame_shape=FRAME_SHAPE, labelled=False))
    yield ring
    ring.close()


class Working:
    """The stage in a thread, on a ring that the test fills as the source does."""

    def __init__(self, ring, store, *, on_result=None, registry=None, drift=None):
        self.ring, self.head, self.failure = ring, ring.source.get("head"), None
        self.stage = InferenceStage(
            ring, small_site(), store=store, registry=registry, on_result=on_result, drift=drift
        )
        self.thread = threading.Thread(target=self._work)

    def _work(self):
        try:
            self.stage.main()
        except BaseException as exc:
            self.failure = exc

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end()
        self.thread.join(10)
        assert not self.thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def feed(self, frames, counts_NCE=None):
        self.head = feed(self.ring, self.head, frames, counts_NCE)

    def end(self):
        self.ring.source.write({**self.ring.source.read(), "ended": 1})
        self.ring.bells["inference"].ring()

    def news(self):
        return self.ring.boards["inference"].read()


def keys(frames):
    return SORT_KEY(pool()[np.arange(frames) % 64].astype(np.float32))


def test_every_frame_gets_the_version_and_the_key_of_the_weights_that_made_them(ring):
    with Working(ring, Store(proven(Gain("7", 2.0)))) as work:
        work.feed(1000)
    told = ring.inference.read()
    assert told == {"done": 1000, "inferred": 1000, "no_model": 0, "stopped": 0, "ended": 1, "seat": 0}
    assert (ring.version_F[:1000] == 7).all()
    np.testing.assert_allclose(ring.phase_F[:1000], keys(1000), atol=1e-5)
    assert work.news()["version"] == "7"


def test_a_backlog_is_inferred_in_the_largest_batches_and_a_trickle_in_small_ones(ring):
    runtime = Gain("7", 2.0)
    runtime.most_frames = 128
    with Working(ring, Store(proven(runtime))) as work:
        until(lambda: work.news().get("version") == "7")
        for done in (100, 200):
            work.feed(100)
            until(lambda done=done: ring.inference.get("done") == done)
        assert max(runtime.started) == 32
        work.feed(500)
    assert runtime.started[-7:] == [128, 128, 128, 32, 32, 32, 20]
    np.testing.assert_allclose(ring.phase_F[:700], keys(700), atol=1e-5)


def test_without_weights_frames_pass_marked_as_such(ring):
    results = []
    with Working(ring, Store(), on_result=results.append) as work:
        work.feed(100)
    assert ring.inference.get("no_model") == 100
    assert (ring.version_F[:100] == 0).all()
    assert np.isnan(ring.phase_F[:100]).all()
    assert {result.version for result in results} == {""}
    assert np.concatenate([result.pulse_id_N for result in results]).tolist() == list(range(100))


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_frames_under_way_at_a_swap_belong_to_the_old_version_and_nothing_is_mixed(ring, lanes):
    old, new = Gain("1", 1.0, lanes=lanes, pause_s=0.01), Gain("2", 5.0, lanes=lanes)
    results = []
    with Working(ring, Store(proven(old)), on_result=results.append) as work:
        work.feed(500)
        until(lambda: ring.inference.get("done") > 64)
        work.stage._offer.put(proven(new))
        until(lambda: work.news().get("version") == "2")
        work.feed(200)
    versions = ring.version_F[:700]
    swapped = int((versions == 1).sum())
    assert 64 < swapped < 500
    assert (versions[:swapped] == 1).all()
    assert (versions[swapped:] == 2).all()
    for result in results:
        np.testing.assert_allclose(
            result.rate_NCE, pool()[result.pulse_id_N % 64] * (1.0 if result.version == "1" else 5.0)
        )
    assert sum(len(result.pulse_id_N) for result in results) == 700
    # Without a watcher the old one waits to be closed, beside the frames.
    assert (old.closed, new.closed) == (0, 0)
    work.stage._offer.close_retired()
    assert (old.closed, new.closed) == (1, 0)
    # The golden frames of the first check, and then these.
    assert sum(old.started) == swapped + len(GOLDEN_NCE)


@pytest.mark.parametrize(
    "lie", [{"served": 5.1}, {"served": float("nan")}, {"served": RuntimeError("no such kernel")}, {"turned": 0.5}]
)
def test_a_version_that_serves_other_than_it_was_proven_is_refused_and_the_old_one_stays(ring, lie):
    """By `infer` it tells the truth; by `start`, the way of the frames, it does not."""
    old, liar = Gain("1", 1.0), Gain("2", 5.0, **lie)
    with Working(ring, Store(proven(old))) as work:
        work.feed(100)
        work.stage._offer.put(proven(liar))
        until(lambda: work.news().get("swaps_refused") == 1)
        work.feed(100)
    assert (ring.version_F[:200] == 1).all()
    assert "version 2 refused" in work.news()["problem"]
    assert work.news()["version"] == "1"
    assert work.news().get("swaps", 0) == 0
    assert (old.closed, liar.closed) == (0, 1)


def test_a_liar_that_was_remembered_does_not_serve_after_a_restart(ring):
    with Working(ring, Store(proven(Gain("2", 5.0, served=4.0)))) as work:
        work.feed(100)
    assert ring.inference.get("no_model") == 100
    assert "not loaded" in work.news()["problem"]


class Registry:
    """Names one champion after the other."""

    def __init__(self, version):
        self.version = version

    def get(self, alias):
        assert alias == CHAMPION
        return SimpleNamespace(name="m", version=self.version, bundle_digest=f"d{self.version}")


def test_a_version_refused_at_the_swap_is_not_what_a_restart_begins_with(ring):
    """What is remembered is what is live, also when the watcher had believed in another one."""
    liar = proven(Gain("2", 5.0, served=4.0))
    store, registry = Store(proven(Gain("1", 1.0)), [liar]), Registry("2")
    with Working(ring, store, registry=lambda: registry) as work:
        work.feed(100)
        until(lambda: work.news().get("swaps_refused") == 1)
        until(lambda: store.remembered_as and store.remembered_as[-1] == "1")
        time.sleep(0.1)
        assert work.news()["swaps_refused"] == 1, "it is not tried again at once"
    assert (ring.version_F[:100] == 1).all()


def test_a_bundle_that_is_no_longer_what_it_was_is_told_and_frames_go_on_without(ring):
    with Working(ring, Store(VerificationError("a torn bundle"))) as work:
        work.feed(10)
    assert ring.inference.get("no_model") == 10
    assert "a torn bundle" in work.news()["problem"]


def test_an_offer_nobody_took_is_closed_when_a_newer_one_comes(ring):
    stage = InferenceStage(ring, small_site(), store=Store(), registry=None)
    first, second = Gain("1", 1.0), Gain("2", 2.0)
    stage._offer.put(proven(first))
    stage._offer.put(proven(second))
    assert first.closed == 1
    assert stage._offer.take().runtime is second
    assert stage._offer.take() is None


def test_a_life_after_a_kill_goes_on_at_the_first_frame_that_is_not_done(ring):
    with Working(ring, Store(proven(Gain("7", 2.0)))) as work:
        work.feed(100)
        until(lambda: ring.inference.get("done") == 100)
    # It died with results of the next frames half written.
    ring.inference.write({**ring.inference.read(), "done": 80, "inferred": 80, "ended": 0})
    ring.version_F[80:] = 99
    ring.source.write({**ring.source.read(), "ended": 0})
    with Working(ring, Store(proven(Gain("8", 2.0)))) as again:
        again.feed(50)
    assert ring.inference.get("done") == ring.inference.get("inferred") == 150
    assert (ring.version_F[:80] == 7).all()
    assert (ring.version_F[80:150] == 8).all()


def test_frames_of_an_overdue_stop_are_marked_and_counted_and_it_ends_at_once(ring):
    slow = Gain("7", 2.0, pause_s=0.05)
    with Working(ring, Store(proven(slow))) as work:
        # Across the end of the ring, twice.
        work.feed(600)
        ring.control.write({"stop": 1, "hurry": 1})
        begun_s = time.monotonic()
        work.end()
        work.thread.join(5)
        assert time.monotonic() - begun_s < 1.0
    done = ring.inference.read()
    assert done["done"] == 600 == done["inferred"] + done["stopped"]
    assert done["stopped"] > 400
    assert (ring.version_F[:600] == NOT_INFERRED).sum() == done["stopped"]


def test_latency_is_from_the_arrival_of_the_oldest_frame_of_a_batch_to_its_result(ring):
    took_ms = []
    with Working(ring, Store(proven(Gain("7", 2.0, pause_s=0.05)))) as work:
        for _ in range(4):
            begun_s = time.monotonic()
            work.feed(32)
            until(lambda: ring.inference.get("done") == work.head)
            took_ms.append(1e3 * (time.monotonic() - begun_s))
    news = work.news()
    assert 50 <= news["latency_p50_ms"] <= news["latency_p99_ms"] <= news["latency_p999_ms"]
    assert news["latency_p999_ms"] <= 1.05 * max(took_ms), "the upper edge of a step of 4 %"


@contextmanager
def named_threads():
    before = set(threading.enumerate())
    yield lambda: [thread for thread in threading.enumerate() if thread not in before]


def test_the_watcher_ends_with_its_stage(ring):
    with named_threads() as new:
        with Working(ring, Store(), registry=lambda: Registry("x")) as work:
            work.feed(10)
            until(lambda: any(isinstance(thread, ModelWatcher) for thread in new()))
        until(lambda: not any(isinstance(thread, ModelWatcher) for thread in new()))


def test_the_quality_told_is_that_of_the_live_version(ring):
    with Working(ring, Store(proven(Gain("1", 1.0)))) as work:
        work.feed(256)
        until(lambda: (work.news().get("quality") or {}).get("version") == "1")
        work.stage._offer.put(proven(Gain("2", 2.0)))
        until(lambda: work.news().get("version") == "2")
        assert (work.news().get("quality") or {"version": "2"})["version"] == "2"
        end_s = time.monotonic() + 10
        while (work.news().get("quality") or {}).get("version") != "2":
            assert time.monotonic() < end_s
            work.feed(32)
            time.sleep(0.02)


def test_a_channel_whose_gain_drifts_is_corrected_between_two_batches_until_other_weights_come(ring, tmp_path):
    drift = DriftMonitor(DriftSection(window_frames=32, reference_windows=2), tmp_path)
    bright = pool().copy()
    bright[:, 2] *= 2
    old, new = Gain("1", 1.0), Gain("2", 3.0)
    with Working(ring, Store(proven(old)), drift=drift) as work:

        def told():
            return work.news().get("drift") or {}

        def fed(counts_NCE=None):
            work.feed(64, counts_NCE)
            until(lambda: ring.inference.get("done") == work.head)

        until(lambda: (fed(), told().get("nll_reference") is not None)[1], deadline_s=30)
        until(lambda: (fed(bright), told().get("gain") is not None)[1], deadline_s=30)
        assert told()["gain"]["gain_C"] == pytest.approx([1.0, 1.0, 2.0, 1.0], rel=0.05)
        assert "channel 2" in told()["findings"][0]["text"]
        ring.phase_F[:] = 0
        fed(bright)
        seen, at = ring.phase_F, np.arange(work.head - 64, work.head) % ring.frames
        corrected = bright.astype(np.float32)
        corrected[:, 2] /= 2
        apart = np.angle(np.exp(1j * (seen[at] - SORT_KEY(corrected))))
        assert np.median(np.abs(apart)) < 0.02
        assert (ring.version_F[at] == 1).all()
        work.stage._offer.put(proven(new))
        until(lambda: work.news().get("version") == "2")
        assert told()["gain"] is None
        fed(bright)
        at = np.arange(work.head - 64, work.head) % ring.frames
        np.testing.assert_allclose(ring.phase_F[at], SORT_KEY(bright.astype(np.float32)), atol=1e-5)
    work.stage._offer.close_retired()
    assert (old.closed, new.closed) == (1, 0), "whoever closes the correction closes what is behind it"
