from __future__ import annotations

import numpy as np

from filmloop.config.schema import EdgeSection
from filmloop.core.documents import HoldoutPolicy
from filmloop.core.poisson import poisson_nll, thin_by_hash
from filmloop.core.types import FrameBlock
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


def monitor(every=1, window=512):
    return QualityMonitor(EdgeSection(quality_every=every, quality_window_frames=window), HoldoutPolicy())


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
