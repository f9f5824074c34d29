from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from filmloop_models.cookiebox.baselines import TemplatePursuit, TunedGaussian
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.score import mse_after_gain_and_shift
from filmloop_models.cookiebox.simulator import CookieBoxSimulator, SimulatedFrames
from filmloop_models.cookiebox.thinning import thin

DATA = Path(os.environ.get("FILMLOOP_DATA", Path(__file__).parents[4] / "shared" / "data"))
NORMAL, FAINT = 200.0, 17.0  # hits a pulse: about 600 and 50 a frame


@cache
def simulated(hits_per_pulse: float) -> SimulatedFrames:
    return CookieBoxSimulator(Conditions(hits_per_pulse=hits_per_pulse), seed=5).frames(0, 600, truth=True)


@cache
def tuned(hits_per_pulse: float) -> tuple[TunedGaussian, TemplatePursuit]:
    counts = simulated(hits_per_pulse).counts_NCE[:400]
    return TunedGaussian.tune(counts), TemplatePursuit.tune(counts, max_frames=120)


@pytest.mark.parametrize("hits_per_pulse", [NORMAL, FAINT])
def test_the_gaussian_beats_zero_and_the_pursuit_beats_the_gaussian(hits_per_pulse: float) -> None:
    frames = simulated(hits_per_pulse)
    assert frames.signal_NCE is not None
    counts, truth = frames.counts_NCE[400:], frames.signal_NCE[400:]
    gaussian, pursuit = (mse_after_gain_and_shift(model.rate(counts), truth)[0] for model in tuned(hits_per_pulse))
    zero = float((truth**2).mean())
    # Measured: gaussian / zero is 0.105 and 0.47, pursuit / gaussian 0.11 and 0.31.
    assert gaussian < 0.6 * zero
    assert pursuit < 0.5 * gaussian


@pytest.mark.parametrize("hits_per_pulse", [NORMAL, FAINT])
def test_they_rank_the_same_without_labels(hits_per_pulse: float) -> None:
    split = thin(simulated(hits_per_pulse).counts_NCE[400:], keep=0.75, seed=9)
    flat = split.nll(np.full_like(split.input_NCE, split.input_NCE.mean()))
    gaussian, pursuit = (split.nll(model.rate(split.input_NCE)) for model in tuned(hits_per_pulse))
    assert pursuit < gaussian < flat


def test_tuning_the_gaussian_without_labels_comes_close_to_tuning_with_them() -> None:
    frames = simulated(NORMAL)
    assert frames.signal_NCE is not None
    counts, truth = frames.counts_NCE, frames.signal_NCE
    with_labels = TunedGaussian.tune_to_labels(counts[:400], truth[:400])
    without = tuned(NORMAL)[0]
    best = mse_after_gain_and_shift(with_labels.rate(counts[400:]), truth[400:])[0]
    assert mse_after_gain_and_shift(without.rate(counts[400:]), truth[400:])[0] < 1.1 * best
    assert with_labels.sigma_energy == pytest.approx(without.sigma_energy, rel=0.15)


def test_the_blur_keeps_the_number_of_counts() -> None:
    counts = np.zeros((2, 16, 128), np.uint8)
    counts[0, 0, 0] = counts[1, 7, 64] = 10
    blurred = TunedGaussian(sigma_energy=3.0, sigma_channel=1.0).rate(counts)
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 10, rtol=1e-5)
    assert blurred[0, 15, 0] == pytest.approx(blurred[0, 1, 0])  # the channels are a ring


def test_the_pursuit_measures_what_the_lines_have_in_common() -> None:
    pursuit = tuned(NORMAL)[1]
    assert pursuit.kick_bin == pytest.approx(32.0, abs=0.1)
    assert pursuit.width_bin == pytest.approx(np.sqrt(2.0**2 + 1 / 12), abs=0.15)
    # 0.0005 dark counts and 2 % secondary of 600 hits over 2,048 bins.
    assert pursuit.background == pytest.approx(0.0064, rel=0.3)


def test_the_pursuit_finds_the_pulses() -> None:
    frames = simulated(NORMAL)
    assert frames.npulses_N is not None
    line_NPK = tuned(NORMAL)[1].lines(frames.counts_NCE[400:])
    right = (line_NPK[..., 0] > 0).sum(axis=1) == frames.npulses_N[400:]
    # Measured 0.79 to 0.87, by threshold. The likelihood prefers a false faint line to a missed one.
    assert right.mean() > 0.7
    one = np.flatnonzero(right & (frames.npulses_N[400:] == 1))
    assert frames.phase_NP is not None
    np.testing.assert_allclose(np.hypot(*line_NPK[one, 0, 2:].T), tuned(NORMAL)[1].kick_bin, rtol=1e-5)
    found, true = np.arctan2(line_NPK[one, 0, 3], line_NPK[one, 0, 2]), frames.phase_NP[400:][one, 0]
    assert np.degrees(np.median(np.abs(np.angle(np.exp(1j * (found - true)))))) < 0.6  # shot noise allows 0.36


def test_the_pursuit_believes_no_line_below_its_threshold() -> None:
    counts = simulated(FAINT).counts_NCE[400:]
    amplitude_NP = TemplatePursuit(threshold_hits=8.0).lines(counts)[..., 0]
    believed = amplitude_NP[amplitude_NP > 0] * 16
    assert len(believed) > len(counts)
    # The last three rounds of fitting may still take a little from a line that passed.
    assert believed.min() > 0.8 * 8.0
    assert not TemplatePursuit(threshold_hits=1e6).lines(counts).any()


def test_the_pursuit_takes_dead_and_uneven_channels() -> None:
    conditions = Conditions(dead_channels=(2,), gain_spread=0.3, polarisation=0.5)
    frames = CookieBoxSimulator(conditions, seed=6).frames(0, 300, truth=True)
    assert frames.rate_NCE is not None
    counts, rate = frames.counts_NCE[200:], frames.rate_NCE[200:]
    pursuit = TemplatePursuit.tune(frames.counts_NCE[:200], max_frames=100)
    assert pursuit.channel_factor_C[2] == 0
    gaussian = TunedGaussian.tune(frames.counts_NCE[:200])
    errors = [mse_after_gain_and_shift(model.rate(counts), rate)[0] for model in (pursuit, gaussian)]
    assert errors[0] < 0.5 * errors[1]


def test_both_run_at_128_channels() -> None:
    frames = CookieBoxSimulator(Conditions(hits_per_pulse=1500), seed=7, frame_shape=(128, 128)).frames(
        0, 24, truth=True
    )
    assert frames.rate_NCE is not None
    gaussian = TunedGaussian.tune(frames.counts_NCE[:8])
    pursuit = TemplatePursuit.tune(frames.counts_NCE[:8])
    errors = [
        mse_after_gain_and_shift(model.rate(frames.counts_NCE[8:]), frames.rate_NCE[8:])[0]
        for model in (pursuit, gaussian)
    ]
    assert gaussian.sigma_channel > 0.1  # neighbours are 1.5 bins apart: there is something to blur
    assert errors[0] < 0.5 * errors[1]


def test_empty_frames_give_the_background() -> None:
    empty = np.zeros((3, 16, 128), np.uint8)
    pursuit = TemplatePursuit(background=0.01)
    np.testing.assert_allclose(pursuit.rate(empty), 0.01, rtol=1e-6)
    assert pursuit.rate(empty[:0]).shape == (0, 16, 128)
    assert np.isfinite(TemplatePursuit.tune(empty).rate(empty)).all()
    assert np.isfinite(TunedGaussian.tune(empty).rate(empty)).all()


def test_a_pursuit_for_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="tuned for 2 channels, but the frames have 16"):
        TemplatePursuit(channel_factor_C=(1.0, 1.0)).rate(np.zeros((1, 16, 128), np.uint8))


def test_on_the_public_frames_they_reach_the_reference_figures() -> None:
    path = DATA / "cookiesimslim_16ch_stacked.h5"
    if not path.exists():
        pytest.skip(f"FILMLOOP_DATA not found: {path}")
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        train, held_out = file["Ximg"][:600], file["Ximg"][5400:]
        truth = file["Ypdf"][5400:].astype(np.float32)
    gaussian, pursuit = TunedGaussian.tune(train), TemplatePursuit.tune(train, max_frames=120)
    gaussian_mse, _, shift = mse_after_gain_and_shift(gaussian.rate(held_out), truth)
    assert shift == 1  # the public simulator's counts lag its truth by a bin
    assert gaussian_mse < 0.00265  # measured 0.00254; tuned with labels 0.00252
    assert mse_after_gain_and_shift(pursuit.rate(held_out), truth)[0] < 0.0005  # measured 0.00032
