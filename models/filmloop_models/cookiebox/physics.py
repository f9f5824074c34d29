"""What a frame says about the shot, cheaply: keys by which frames are sorted into a movie.

Shape suffixes: N frames, C channels, E energy bins, K moments, S sums.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from filmloop_models.spec import SortKey


def phase_weights(bins: int) -> npt.NDArray[np.float32]:
    """Counts and first moment of a channel: 1 and the energy from the middle bin, float32 (E, 2)."""
    return np.stack([np.ones(bins), np.arange(bins) - bins // 2], axis=1).astype(np.float32)


def phase_of_moments(moment_NC2: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Streaking phase of each frame from the moments of its channels; see `streaking_phase`.

    Returns:
        float32 (N,); NaN where fewer than three channels hold anything.
    """
    frames, channels, _ = moment_NC2.shape
    sum_SN = _sums(channels) @ moment_NC2.reshape(frames, 2 * channels).T.astype(np.float64)
    total_N, cos_N, sin_N, cc_N, ss_N, cs_N, energy_N, ce_N, se_N = sum_SN
    # Sums of products about the weighted means, times the total: the normal equations of the sinusoid without its centre.
    cc_N = cc_N * total_N - cos_N * cos_N
    ss_N = ss_N * total_N - sin_N * sin_N
    cs_N = cs_N * total_N - cos_N * sin_N
    ce_N = ce_N * total_N - cos_N * energy_N
    se_N = se_N * total_N - sin_N * energy_N
    # x and y are these over the determinant, which is positive: the angle does not need it.
    phase_N = np.asarray(np.arctan2(cc_N * se_N - cs_N * ce_N, ss_N * ce_N - cs_N * se_N), np.float32)
    phase_N[np.count_nonzero(moment_NC2[:, :, 0] > 0, axis=1) < 3] = np.nan
    return phase_N


streaking_phase = SortKey(weights=phase_weights, of_moments=phase_of_moments)
"""Streaking phase of each frame, rad in (-π, π]: the delay between X-rays and laser field, modulo a period.

The mean energy of channel k follows centre + x cos(θ_k) + y sin(θ_k); the least-squares sinusoid, each channel weighted
by its counts, has the phase arctan2(y, x). Weighting makes it exact for one sub-pulse with any gains, polarisation and
dead channels; for several it is the phase of their mean. NaN where fewer than three channels hold anything.
"""


@lru_cache(maxsize=8)
def _sums(channels: int) -> npt.NDArray[np.float64]:
    """What makes the nine sums of the normal equations out of a frame's moments, float64 (S, 2 C)."""
    theta_C = 2 * np.pi * np.arange(channels) / channels
    cos_C, sin_C, one_C = np.cos(theta_C), np.sin(theta_C), np.ones(channels)
    sum_SC2 = np.zeros((9, channels, 2))
    sum_SC2[:6, :, 0] = one_C, cos_C, sin_C, cos_C * cos_C, sin_C * sin_C, cos_C * sin_C
    sum_SC2[6:, :, 1] = one_C, cos_C, sin_C
    return sum_SC2.reshape(9, 2 * channels)
