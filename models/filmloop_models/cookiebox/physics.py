"""What a frame says about the shot, cheaply: keys by which frames are sorted into a movie.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def streaking_phase(rate_NCE: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Streaking phase of each frame, rad in (-π, π]: the delay between X-rays and laser field, modulo a period.

    The mean energy of channel k follows centre + x cos(θ_k) + y sin(θ_k); the least-squares sinusoid, each channel
    weighted by its counts, has the phase arctan2(y, x). Weighting makes it exact for one sub-pulse with any gains,
    polarisation and dead channels; for several it is the phase of their mean. One matrix product and arithmetic on
    (N, C).

    Args:
        rate_NCE: Rates, or counts.

    Returns:
        float32 (N,); NaN where fewer than three channels hold anything.
    """
    _, channels, bins = rate_NCE.shape
    moment_NC2 = np.asarray(rate_NCE, np.float32) @ np.stack([np.ones(bins), np.arange(bins)], axis=1).astype(
        np.float32
    )
    weight_NC, energy_NC = moment_NC2[..., 0].astype(np.float64), moment_NC2[..., 1].astype(np.float64)
    theta_C = 2 * np.pi * np.arange(channels) / channels
    wave_C2 = np.stack([np.cos(theta_C), np.sin(theta_C)], axis=1)
    total_N = weight_NC.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        wave_N2 = weight_NC @ wave_C2 / total_N[:, None]
        mean_N = energy_NC.sum(axis=1) / total_N
    # Sums of products about the weighted means: the normal equations of the sinusoid without its centre.
    cos_N, sin_N = wave_N2[:, 0], wave_N2[:, 1]
    cc_N = weight_NC @ wave_C2[:, 0] ** 2 - total_N * cos_N**2
    ss_N = weight_NC @ wave_C2[:, 1] ** 2 - total_N * sin_N**2
    cs_N = weight_NC @ (wave_C2[:, 0] * wave_C2[:, 1]) - total_N * cos_N * sin_N
    ce_N = energy_NC @ wave_C2[:, 0] - total_N * cos_N * mean_N
    se_N = energy_NC @ wave_C2[:, 1] - total_N * sin_N * mean_N
    # x and y are these over the determinant, which is positive: the angle does not need it.
    phase_N = np.arctan2(cc_N * se_N - cs_N * ce_N, ss_N * ce_N - cs_N * se_N)
    solvable_N = (weight_NC > 0).sum(axis=1) >= 3
    return np.where(solvable_N, phase_N, np.nan).astype(np.float32)
