from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.physics import streaking_phase
from filmloop_models.cookiebox.simulator import CookieBoxSimulator, SimulatedFrames

CLEAN = Conditions(dark_per_bin=0, secondary_fraction=0)
UNEVEN = CLEAN.model_copy(update={"dead_channels": (3, 4), "polarisation": 0.4, "gain_spread": 0.3})


def error_deg(key_N: npt.NDArray[np.float32], frames: SimulatedFrames) -> npt.NDArray[np.float64]:
    assert frames.phase_NP is not None
    one = frames.npulses_N == 1
    return np.abs(np.degrees(np.angle(np.exp(1j * (key_N[one] - frames.phase_NP[one, 0])))))


@pytest.mark.parametrize("conditions", [CLEAN, UNEVEN], ids=["even", "dead channels, gains, polarisation"])
def test_the_phase_of_a_single_pulse_is_exact_on_rates(conditions: Conditions) -> None:
    frames = CookieBoxSimulator(conditions, seed=3).frames(0, 1024, truth=True)
    assert frames.rate_NCE is not None
    assert error_deg(streaking_phase(frames.rate_NCE), frames).max() < 0.01


def test_the_phase_of_a_single_pulse_is_good_to_a_degree_on_counts() -> None:
    frames = CookieBoxSimulator(Conditions(), seed=3).frames(0, 2048, truth=True)
    # 200 hits of 2 bins at a kick of 32: sigma = sqrt(2 / 200) * 2 / 32 rad = 0.36 degrees; flat counts add as much.
    assert np.median(error_deg(streaking_phase(frames.counts_NCE), frames)) < 1.5


def test_frames_without_a_phase_give_nan() -> None:
    frames = np.zeros((3, 16, 128), np.float32)
    frames[1, :2, 60] = 5  # two channels do not make a sinusoid
    frames[2, ::5, [50, 60, 70, 60]] = 5
    assert np.isnan(streaking_phase(frames)).tolist() == [True, True, False]
    assert streaking_phase(frames).dtype == np.float32
    assert streaking_phase(frames[:0]).shape == (0,)


def test_the_key_of_moments_is_that_of_rates_and_its_weights_are_exact_in_bfloat16() -> None:
    counts = CookieBoxSimulator(Conditions(), seed=3).frames(0, 256).counts_NCE
    weights = streaking_phase.weights(128)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, np.rint(weights))
    # bfloat16 has eight significant bits: all whole numbers up to 256.
    assert np.abs(weights).max() <= 256
    moments = counts.astype(np.float32) @ weights
    np.testing.assert_array_equal(streaking_phase.of_moments(moments), streaking_phase(counts))


def test_the_phase_does_not_depend_on_where_energies_are_counted_from() -> None:
    counts = CookieBoxSimulator(Conditions(), seed=3).frames(0, 256).counts_NCE.astype(np.float32)
    moments = counts @ streaking_phase.weights(128)
    elsewhere = moments.copy()
    elsewhere[..., 1] += 64 * moments[..., 0]
    apart = np.angle(np.exp(1j * (streaking_phase.of_moments(elsewhere) - streaking_phase.of_moments(moments))))
    assert np.nanmax(np.abs(apart)) < 1e-3
