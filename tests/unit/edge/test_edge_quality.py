from __future__ import annotations

import time

import numpy as np
import pytest

from filmloop.config.schema import EdgeSection
from filmloop.core.documents import HoldoutPolicy
from filmloop.core.poisson import poisson_nll, thin_by_hash
from filmloop.core.types import FrameBlock
from filmloop.edge.latency import Latency
from filmloop.edge.quality import QualityMonitor

RATE = 0.8


class KnownRate:
    """Predicts one rate everywhere and remembers what it was shown."""

    version, name = "7", "known"

    def __init__(self, rate):
        self.rate, self.seen = rate, []

    def infer(self, counts_NCE):
        self.seen.append(counts_NCE.copy())
        return np.full(counts_NCE.shape, self.rate, np.float32)


def block(first, frames, rate=RATE):
    rng = np.random.default_rng(first)
    return FrameBlock(
        run_number=1,
        pulse_id_N=np.arange(first, first + frames, dtype=np.uint64),
        counts_NCE=rng.poisson(rate, (frames, 4, 16)).astype(np.uint8),
        flags_N=np.zeros(frames, np.uint8),
    )


class Watcher(QualityMonitor):
    """Both halves of it at once: the copy, made while the frames lie in the ring, and the score."""

    def watch(self, block, runtime):
        self.take(block)
        return self.score(runtime)


def monitor(every=1, window=512, hz=1e9):
    edge = EdgeSection(quality_every=every, quality_window_frames=window, quality_hz=hz)
    return Watcher(edge, HoldoutPolicy(), (4, 16))


def test_the_score_is_the_gates_held_out_thinned_nll():
    frames, policy, runtime = block(0, 64), HoldoutPolicy(), KnownRate(RATE)
    quality = monitor().watch(frames, runtime)
    seen = thin_by_hash(frames.counts_NCE, frames.pulse_id_N, keep=policy.keep, seed=policy.seed)
    expected = poisson_nll(np.full(seen.shape, RATE * (1 - policy.keep), np.float32), frames.counts_NCE - seen).mean()
    assert quality.frames == 64
    assert quality.version == "7"
    assert np.isclose(quality.nll, expected, rtol=1e-6)
    assert quality.hits_per_frame == frames.counts_NCE.reshape(64, -1).sum(axis=1).mean()
    # The network is shown the kept part, scaled up to the whole frame that it was trained on.
    np.testing.assert_allclose(runtime.seen[0], seen / policy.keep, rtol=1e-6)


def test_every_nth_frame_of_the_stream_is_sampled_however_it_is_cut():
    runtime, quality, watcher = KnownRate(RATE), None, monitor(every=3)
    sizes = [1, 5, 2, 7, 32, 64, 3, 100, 30, 44]
    first = 0
    for size in sizes:
        quality = watcher.watch(block(first, size), runtime) or quality
        first += size
    assert quality.frames == sum(map(len, runtime.seen))
    assert sum(sizes) // 3 - 32 < quality.frames <= -(-sum(sizes) // 3)


def test_worse_weights_score_worse_and_the_truth_beats_the_constant_predictors_scale_never_by_much():
    good = wrong = None
    good_watcher, wrong_watcher = monitor(), monitor()
    for first in range(0, 640, 64):
        good = good_watcher.watch(block(first, 64), KnownRate(RATE))
        wrong = wrong_watcher.watch(block(first, 64), KnownRate(2 * RATE))
    assert wrong.nll > good.nll + 1
    # Here the truth is constant: the mean frame of 512 knows it to sqrt(0.8/512) = 5 %, 0.1 nats over 64 bins.
    assert abs(good.nll_constant - good.nll) < 0.5


def test_the_mean_is_over_the_window_alone():
    watcher = monitor(window=64)
    for first in range(0, 256, 64):
        quality = watcher.watch(block(first, 64, rate=3.0), KnownRate(3.0))
    dark = watcher.watch(block(1000, 64, rate=0.1), KnownRate(0.1))
    assert quality.frames == dark.frames == 64
    assert dark.hits_per_frame < quality.hits_per_frame / 10


def test_a_reset_forgets_the_scores_of_the_former_weights():
    watcher = monitor()
    watcher.watch(block(0, 64), KnownRate(2 * RATE))
    watcher.reset()
    assert watcher.watch(block(64, 32), KnownRate(RATE)).frames == 32


class PartlyNaN(KnownRate):
    """Cannot tell the rate of the first `unfit` frames it is shown."""

    def __init__(self, unfit):
        super().__init__(RATE)
        self.unfit = unfit

    def infer(self, counts_NCE):
        rate_NCE = super().infer(counts_NCE)
        rate_NCE[: self.unfit, 0, 0] = np.nan
        rate_NCE[: self.unfit, 0, 1] = np.inf
        return rate_NCE


def test_rates_that_are_not_finite_are_left_out_and_counted():
    watcher = monitor()
    quality = watcher.watch(block(0, 64), PartlyNaN(10))
    assert quality.frames == 54
    assert np.isfinite(quality.nll)
    assert watcher.unfit == 10
    watcher.reset()
    assert watcher.watch(block(64, 64), PartlyNaN(64)) is None
    assert watcher.unfit == 64


def test_the_frames_may_be_overwritten_once_they_are_taken():
    frames, watcher = block(0, 64), monitor()
    expected = monitor().watch(block(0, 64), KnownRate(RATE))
    watcher.take(frames)
    frames.counts_NCE[:], frames.pulse_id_N[:] = 0, 0
    assert watcher.score(KnownRate(RATE)) == expected


def test_a_few_frames_are_not_scored_at_once_and_not_kept_waiting_for_long():
    watcher, runtime = monitor(), KnownRate(RATE)
    assert watcher.watch(block(0, 5), runtime) is None
    end_s = time.monotonic() + 3
    while (quality := watcher.score(runtime)) is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert quality.frames == 5


@pytest.mark.parametrize("size", [8, 32, 256])
def test_no_more_frames_are_scored_than_the_site_allows_however_many_come_at_once(size):
    watcher, runtime = monitor(hz=1000.0), KnownRate(RATE)
    frames, begun_s = block(0, size), time.monotonic()
    while time.monotonic() - begun_s < 0.8:
        watcher.watch(frames, runtime)
    seconds = time.monotonic() - begun_s
    scored = sum(map(len, runtime.seen))
    # One batch of 32, or what came with it, is always allowed.
    assert 0.3 * 1000 * seconds < scored <= 1000 * seconds + max(size, 32)


def seen_by(*parts):
    """Input statistics after blocks of (gain of each channel, centre of its energies)."""
    watcher, first = monitor(window=64), 0
    assert watcher.input_statistics() is None
    for gain_C, centre in parts:
        rng = np.random.default_rng(1)
        shape_E = np.exp(-0.5 * ((np.arange(16) - centre) / 2) ** 2)
        for _ in range(4):
            frames = block(first, 64)
            frames.counts_NCE[:] = rng.poisson(np.asarray(gain_C)[:, None] * shape_E, (64, 4, 16))
            watcher.watch(frames, KnownRate(RATE))
            first += 64
    return watcher.input_statistics()


def test_a_gain_that_drops_and_a_channel_that_dies_are_seen():
    well = seen_by(([4, 4, 4, 4], 8))
    assert well.dead_channels == ()
    ill = seen_by(([4, 4, 4, 4], 8), ([4, 2, 4, 0], 8))
    assert ill.dead_channels == (3,)
    assert 0.45 < ill.hits_per_channel[1] / well.hits_per_channel[1] < 0.55
    assert 0.95 < ill.hits_per_channel[0] / well.hits_per_channel[0] < 1.05
    assert ill.centre_per_channel[3] == -1.0


def test_energies_that_move_are_seen_though_the_gain_stays():
    before, after = seen_by(([4] * 4, 6)), seen_by(([4] * 4, 6), ([4] * 4, 9))
    for channel in range(4):
        assert 2.7 < after.centre_per_channel[channel] - before.centre_per_channel[channel] < 3.3
        assert 0.95 < after.hits_per_channel[channel] / before.hits_per_channel[channel] < 1.05


def test_a_beam_that_is_off_makes_no_channel_dead_and_every_number_can_be_written():
    dark = seen_by(([0] * 4, 8))
    assert dark.dead_channels == ()
    assert dark.hits_per_channel == (0.0,) * 4
    assert dark.centre_per_channel == (-1.0,) * 4


def test_latencies_are_percentiles_of_the_newest_batches_never_told_too_low():
    latency = Latency()
    assert latency.percentiles_ms() == (0.0, 0.0, 0.0)
    for milliseconds in range(1, 1001):
        latency.add(milliseconds * 1_000_000)
    # Buckets are 4.5 % wide, and their upper edges are told.
    for told, true in zip(latency.percentiles_ms(), (500, 990, 999), strict=True):
        assert true <= told <= 1.05 * true
    for _ in range(25):
        latency.tick()
    assert latency.percentiles_ms() == (0.0, 0.0, 0.0), "five seconds ago"
    latency.add(2_500_000)
    assert all(2.5 <= told <= 2.65 for told in latency.percentiles_ms())
    assert sum(latency.counts) == 1001


def test_a_latency_of_any_size_has_its_bucket():
    latency = Latency()
    for nanoseconds in (-5, 0, 1, 1023, 1024, 10**12, 10**18):
        latency.add(nanoseconds)
    assert sum(latency.counts) == 7
    assert latency.counts[-1] == 2
