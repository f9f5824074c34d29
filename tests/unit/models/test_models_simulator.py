from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from filmloop_models.cookiebox.conditions import Conditions, DriftStep
from filmloop_models.cookiebox.simulator import BLOCK_FRAMES, CookieBoxSimulator, SimulatedFrames

RICH = Conditions(
    polarisation=0.4,
    polarisation_angle_rad=0.7,
    gain_spread=0.2,
    dead_channels=(5,),
    dark_per_bin=0.02,
    secondary_fraction=0.1,
    bin_offset=1,
)


def simulate(conditions: Conditions | None = None, frames: int = BLOCK_FRAMES, **more: object) -> SimulatedFrames:
    return CookieBoxSimulator(conditions or Conditions(), seed=1, **more).frames(0, frames, truth=True)  # type: ignore[arg-type]


def test_a_seed_means_the_same_frames_for_ever() -> None:
    frames = CookieBoxSimulator(RICH, seed=20261122).frames(300, 20).counts_NCE
    assert (
        hashlib.sha256(frames.tobytes()).hexdigest()
        == "4b96ec6f9e1eb7c8aa4014164190df8d6a87fbc6154ec3370b90f94b1be733b0"
    )


def test_another_seed_gives_other_frames() -> None:
    one, other = (CookieBoxSimulator(Conditions(), seed=seed).frames(0, 1).counts_NCE for seed in (1, 2))
    assert (one != other).any()


def test_frames_do_not_depend_on_how_a_range_is_cut() -> None:
    whole = CookieBoxSimulator(RICH, seed=3).frames(0, 3 * BLOCK_FRAMES)
    again = CookieBoxSimulator(RICH, seed=3)
    for first, count in ((700, 1), (0, 1), (255, 2), (250, 300), (512, 256)):  # across, at and inside block borders
        part = again.frames(first, count)
        np.testing.assert_array_equal(part.counts_NCE, whole.counts_NCE[first : first + count])
        np.testing.assert_array_equal(part.pulse_id_N, np.arange(first, first + count, dtype=np.uint64))
    with_truth = again.frames(512, 256, truth=True)
    np.testing.assert_array_equal(with_truth.counts_NCE, whole.counts_NCE[512:])


def test_no_frames_are_an_empty_set_and_negative_numbers_an_error() -> None:
    simulator = CookieBoxSimulator(Conditions(), seed=3)
    assert simulator.frames(256, 0).counts_NCE.shape == (0, 16, 128)
    assert simulator.frames(0, 0, truth=True).rate_NCE.shape == (0, 16, 128)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="start at 0"):
        simulator.frames(-1, 5)


def test_default_frames_resemble_the_public_set() -> None:
    frames = simulate(frames=2048)
    hits_N = frames.counts_NCE.sum(axis=(1, 2))
    # Public set: median 464 hits, 89 % empty bins, 5 % empty frames (e^-3), amplitudes 1 +- 0.31. Ours is a bit brighter.
    assert 450 < np.median(hits_N) < 650
    assert 0.85 < (frames.counts_NCE == 0).mean() < 0.92
    assert frames.npulses_N is not None
    assert (frames.npulses_N == 0).mean() == pytest.approx(np.exp(-3), abs=0.02)
    assert frames.amplitude_NP is not None
    assert np.nanmean(frames.amplitude_NP) == pytest.approx(1, abs=0.02)
    assert np.nanstd(frames.amplitude_NP) == pytest.approx(10**-0.5, abs=0.02)


def test_counts_are_poisson_with_the_stated_rate() -> None:
    frames = simulate(RICH, frames=2048)
    assert frames.rate_NCE is not None
    counts, rate = frames.counts_NCE.reshape(-1), frames.rate_NCE.reshape(-1).astype(np.float64)
    assert (counts[rate == 0] == 0).all()
    counts, rate = counts[rate > 0], rate[rate > 0]
    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 1), (1, 3), (3, 100)):
        some = (rate > low) & (rate <= high)
        total, chi_square = rate[some].sum(), ((counts[some] - rate[some]) ** 2 / rate[some]).sum()
        # 4 standard deviations; the variance of (k - r)^2 / r is 2 + 1/r for a Poisson k.
        assert abs(counts[some].sum() - total) < 4 * np.sqrt(total)
        assert abs(chi_square - some.sum()) < 4 * np.sqrt((2 + 1 / rate[some]).sum())


def test_bins_are_independent_draws() -> None:
    """Hits of one line share its number of hits: a wrong scheme would make neighbouring bins move together."""
    frames = simulate(frames=2048)
    assert frames.rate_NCE is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (frames.counts_NCE - frames.rate_NCE) / np.sqrt(frames.rate_NCE)
    bright = (frames.rate_NCE[..., 1:] > 0.5) & (frames.rate_NCE[..., :-1] > 0.5)
    correlation = (z[..., 1:] * z[..., :-1])[bright].mean()
    assert abs(correlation) < 4 / np.sqrt(bright.sum())


def test_frames_that_the_truth_calls_empty_have_background_only() -> None:
    frames = simulate(Conditions(dark_per_bin=0.01), frames=1024)
    assert frames.npulses_N is not None
    assert frames.rate_NCE is not None
    empty = frames.npulses_N == 0
    np.testing.assert_allclose(frames.rate_NCE[empty], 0.01, rtol=1e-6)
    assert np.isnan(frames.phase_NP[empty]).all()  # type: ignore[index]


def test_a_line_lies_where_the_streaking_formula_puts_it() -> None:
    frames = simulate(Conditions(photon_jitter_bin=3.0))
    assert frames.npulses_N is not None
    assert frames.signal_NCE is not None
    assert frames.centre_NP is not None
    assert frames.phase_NP is not None
    one = frames.npulses_N == 1
    signal = frames.signal_NCE[one].astype(np.float64)
    energy_NC = (signal @ np.arange(128)) / signal.sum(axis=2)
    theta_C = 2 * np.pi * np.arange(16) / 16
    expected_NC = frames.centre_NP[one, :1] + 32.0 * np.cos(theta_C - frames.phase_NP[one, :1])
    np.testing.assert_allclose(energy_NC, expected_NC, atol=1e-3)
    width = np.sqrt((signal * (np.arange(128) - energy_NC[..., None]) ** 2).sum(axis=2) / signal.sum(axis=2))
    np.testing.assert_allclose(width, np.sqrt(2.0**2 + 1 / 12), atol=2e-3)  # a bin adds 1/12 to the variance


def test_a_dead_channel_counts_nothing_but_keeps_its_truth() -> None:
    frames = simulate(Conditions(dead_channels=(2, 7), dark_per_bin=0.05))
    assert frames.rate_NCE is not None
    assert frames.signal_NCE is not None
    assert not frames.counts_NCE[:, [2, 7]].any()
    assert not frames.rate_NCE[:, [2, 7]].any()
    assert frames.signal_NCE[:, [2, 7]].sum() > 0
    assert frames.counts_NCE[:, 3].any()


def test_a_dead_channel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dead_channels names \[16\]"):
        CookieBoxSimulator(Conditions(dead_channels=(16,)), seed=1)
    with pytest.raises(ValueError, match="dead_channels names"):
        CookieBoxSimulator(Conditions(), seed=1, drift=[DriftStep(from_frame=5, set={"dead_channels": [-1]})])


def test_gain_scales_what_is_seen_and_leaves_dark_counts_and_truth() -> None:
    bare, doubled = simulate(Conditions(dark_per_bin=0.01)), simulate(Conditions(dark_per_bin=0.01, gain=2.0))
    np.testing.assert_array_equal(bare.signal_NCE, doubled.signal_NCE)
    np.testing.assert_allclose(doubled.rate_NCE - 0.01, 2 * (bare.rate_NCE - 0.01), rtol=1e-4, atol=1e-6)  # type: ignore[operator]


def test_secondary_electrons_are_a_flat_share_of_the_lines() -> None:
    frames = simulate(Conditions(dark_per_bin=0, secondary_fraction=0.25))
    assert frames.rate_NCE is not None
    assert frames.signal_NCE is not None
    extra_NCE = frames.rate_NCE - frames.signal_NCE
    np.testing.assert_allclose(extra_NCE.sum(axis=2), 0.25 * frames.signal_NCE.sum(axis=2), atol=1e-3)
    assert extra_NCE.std(axis=2).max() < 1e-5


def test_what_is_drawn_is_independent_of_each_other() -> None:
    """Streams that share their random bits would tie, say, the energy of a pulse to its phase."""
    frames = simulate(frames=4096)
    drawn = [frames.centre_NP, frames.phase_NP, frames.amplitude_NP]
    values = [value[np.isfinite(value)].astype(np.float64) for value in drawn if value is not None]
    values += [np.abs(values[0] - 64.0)]
    off_diagonal = np.corrcoef(values) - np.eye(4)
    assert np.abs(off_diagonal).max() < 4 / np.sqrt(len(values[0]))


def test_the_gain_spread_is_one_fixed_factor_per_channel() -> None:
    even = simulate(Conditions(dark_per_bin=0))
    spread = simulate(Conditions(dark_per_bin=0, gain_spread=0.3))
    factor_NC = spread.rate_NCE.sum(axis=2)[even.npulses_N > 0] / even.rate_NCE.sum(axis=2)[even.npulses_N > 0]  # type: ignore
    np.testing.assert_allclose(factor_NC, np.broadcast_to(factor_NC[0], factor_NC.shape), rtol=1e-4)
    assert 0.1 < factor_NC[0].std() < 0.6


def test_polarisation_weakens_the_channels_across_it() -> None:
    frames = simulate(Conditions(polarisation=1.0, polarisation_angle_rad=0.0), frames=1024)
    assert frames.signal_NCE is not None
    per_channel_C = frames.signal_NCE.sum(axis=(0, 2))
    np.testing.assert_allclose(per_channel_C[[4, 12]], 0, atol=1e-3)  # 90 and 270 degrees
    np.testing.assert_allclose(per_channel_C[[0, 8]].mean(), 2 * per_channel_C.mean(), rtol=1e-3)


def test_the_offset_displaces_counts_and_rate_but_not_the_truth() -> None:
    plain, moved = simulate(), simulate(Conditions(bin_offset=3))
    np.testing.assert_array_equal(plain.signal_NCE, moved.signal_NCE)
    np.testing.assert_allclose(moved.rate_NCE[..., 3:], plain.rate_NCE[..., :-3], atol=1e-5)  # type: ignore[index]
    lag = [
        (plain.signal_NCE[..., 8:-8] * np.roll(moved.counts_NCE, -by, axis=2)[..., 8:-8]).sum()  # type: ignore[index]
        for by in range(7)
    ]
    assert int(np.argmax(lag)) == 3


def test_delays_follow_from_phases_and_the_laser_period() -> None:
    frames = simulate(Conditions(streaking_period_fs=8.0))
    phase_NP, delay_NP = frames.phase_NP, frames.delay_fs_NP
    assert phase_NP is not None
    assert delay_NP is not None
    several = frames.npulses_N >= 2  # type: ignore[operator]
    assert (delay_NP[several, 0] == 0).all()
    assert np.nanmax(np.abs(delay_NP)) <= 4.0  # half a period: a phase cannot tell more
    turns = (phase_NP[several, 1] - phase_NP[several, 0]) / (2 * np.pi) - delay_NP[several, 1] / 8.0
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-5)


def test_counts_above_255_are_clipped_and_flagged() -> None:
    frames = simulate(Conditions(hits_per_pulse=6000.0, line_width_bin=0.3), frames=128)  # up to 375 counts in a bin
    assert frames.rate_NCE is not None
    brightest_N = frames.rate_NCE.max(axis=(1, 2))
    assert frames.counts_NCE.max() == 255
    # 5 standard deviations of 255 counts are 80.
    assert frames.saturated_N[brightest_N > 335].all()
    assert not frames.saturated_N[brightest_N < 175].any()
    assert 0 < frames.saturated_N.sum() < 128


def test_other_frame_shapes_work() -> None:
    frames = simulate(frame_shape=(128, 128), frames=32)
    assert frames.counts_NCE.shape == (32, 128, 128)
    assert frames.rate_NCE is not None
    assert frames.counts_NCE.sum() == pytest.approx(frames.rate_NCE.sum(), rel=0.05)


class TestDrift:
    def test_values_move_linearly_between_the_two_frames(self) -> None:
        drift = [DriftStep(from_frame=100, to_frame=200, set={"photon_energy_bin": 80.0, "gain": 0.5})]
        at = CookieBoxSimulator(Conditions(), seed=1, drift=drift).conditions_at
        assert [at(frame).photon_energy_bin for frame in (0, 100, 150, 200, 10_000)] == [64, 64, 72, 80, 80]
        assert [at(frame).gain for frame in (100, 125, 200)] == [1.0, 0.875, 0.5]

    def test_a_sudden_step_begins_at_its_frame(self) -> None:
        drift = [DriftStep(from_frame=100, set={"kick_bin": 24.0, "dead_channels": [3]})]
        at = CookieBoxSimulator(Conditions(dead_channels=(1,)), seed=1, drift=drift).conditions_at
        assert [(at(frame).kick_bin, at(frame).dead_channels) for frame in (99, 100)] == [(32, (1,)), (24, (3,))]

    def test_a_later_step_starts_from_where_the_earlier_one_is(self) -> None:
        drift = [
            DriftStep(from_frame=50, to_frame=150, set={"gain": 0.0}),
            DriftStep(from_frame=0, to_frame=100, set={"gain": 2.0}),  # given out of order
        ]
        at = CookieBoxSimulator(Conditions(), seed=1, drift=drift).conditions_at
        assert [at(frame).gain for frame in (0, 50, 100, 150)] == [1.0, 1.5, 1.0, 0.0]

    def test_the_offset_moves_in_whole_bins(self) -> None:
        drift = [DriftStep(from_frame=0, to_frame=100, set={"bin_offset": 2})]
        at = CookieBoxSimulator(Conditions(), seed=1, drift=drift).conditions_at
        assert [at(frame).bin_offset for frame in (0, 20, 30, 80, 100)] == [0, 0, 1, 2, 2]

    def test_impossible_conditions_are_refused_at_once(self) -> None:
        with pytest.raises(ValidationError, match="line_width_bin"):
            CookieBoxSimulator(Conditions(), seed=1, drift=[DriftStep(from_frame=5, set={"line_width_bin": 0.0})])

    def test_frames_before_a_drift_stay_the_same(self) -> None:
        change = {
            "pulses_mean": 9.0,
            "gain": 3.0,
            "photon_energy_bin": 40.0,
            "photon_jitter_bin": 9.0,
            "line_width_bin": 5.0,
            "dark_per_bin": 0.1,
            "dead_channels": [0],
        }
        drift = [DriftStep(from_frame=130, set=change)]  # in the middle of a block
        calm = CookieBoxSimulator(Conditions(), seed=1).frames(0, 400)
        drifting = CookieBoxSimulator(Conditions(), seed=1, drift=drift).frames(0, 400)
        np.testing.assert_array_equal(drifting.counts_NCE[:130], calm.counts_NCE[:130])
        assert drifting.counts_NCE[130:].mean() > 2 * calm.counts_NCE[130:].mean()
        assert not drifting.counts_NCE[130:, 0].any()
