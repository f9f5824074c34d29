"""The physics of a shot as arrays: where its photo lines lie, how many counts to expect, and one Poisson draw of them.

A sub-pulse with centre E_0, phase φ and amplitude a sends electrons into channel k, at the angle θ_k = 2πk/C. The
streaking laser moves their energy to

    E_k = E_0 + kick · cos(θ_k - φ)

where they form a Gaussian line. Everything else (dark counts, secondary electrons) is flat in energy.

Shape suffixes: N frames, C channels, E energy bins, S sub-pulses of all frames, H hits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_CDF_X = np.linspace(-7.0, 7.0, 14001)
_CDF_Y = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in _CDF_X])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """A block of shots as they meet the detector.

    Attributes:
        frame_shape: (C, E).
        frame_S: int64 (S,), the row of each sub-pulse's frame; ascending.
        rank_S: int64 (S,), its number within the frame, from 0.
        centre_S: Energy of the line before streaking, bins.
        phase_S: Streaking phase, rad in [0, 2π).
        amplitude_S: Pulse energy relative to the mean.
        track_SC: Energy of its line in each channel, bins of the truth.
        ideal_SC: Expected counts of its line with gain 1 and all channels alive.
        factor_NC: What the detector makes of that: gain, channel spread, 0 for dead channels.
        background_NC: Expected dark and secondary counts of a channel, over all bins.
        width_N: Width of a line, 1 sigma, bins.
        offset_N: int64 (N,), displacement of the counts against the truth, bins.
    """

    frame_shape: tuple[int, int]
    frame_S: npt.NDArray[np.int64]
    rank_S: npt.NDArray[np.int64]
    centre_S: Floats
    phase_S: Floats
    amplitude_S: Floats
    track_SC: Floats
    ideal_SC: Floats
    factor_NC: Floats
    background_NC: Floats
    width_N: Floats
    offset_N: npt.NDArray[np.int64]


def place_shots(
    now: Mapping[str, npt.NDArray[np.float64]],
    *,
    frame_shape: tuple[int, int],
    frame_S: npt.NDArray[np.int64],
    rank_S: npt.NDArray[np.int64],
    centre_S: Floats,
    phase_S: Floats,
    amplitude_S: Floats,
    channel_gain_NC: Floats,
    alive_NC: npt.NDArray[np.bool_],
) -> Shots:
    """Put the sub-pulses through the streaking field and the detector. `now` holds the conditions, (N,) each."""
    channels, bins = frame_shape
    theta_C = 2 * np.pi * np.arange(channels) / channels
    track_SC = centre_S[:, None] + now["kick_bin"][frame_S, None] * np.cos(theta_C - phase_S[:, None])
    anisotropy_NC = 1 + now["polarisation"][:, None] * np.cos(2 * (theta_C - now["polarisation_angle_rad"][:, None]))
    ideal_NC = (now["hits_per_pulse"] * now["intensity"])[:, None] * anisotropy_NC / channels
    ideal_SC = amplitude_S[:, None] * ideal_NC[frame_S]
    factor_NC = np.where(alive_NC, now["gain"][:, None] * channel_gain_NC, 0.0)
    line_NC = np.zeros_like(ideal_NC)
    np.add.at(line_NC, frame_S, ideal_SC)
    background_NC = line_NC * factor_NC * now["secondary_fraction"][:, None]
    background_NC += np.where(alive_NC, now["dark_per_bin"][:, None] * bins, 0.0)
    return Shots(
        frame_shape=frame_shape,
        frame_S=frame_S,
        rank_S=rank_S,
        centre_S=centre_S,
        phase_S=phase_S,
        amplitude_S=amplitude_S,
        track_SC=track_SC,
        ideal_SC=ideal_SC,
        factor_NC=factor_NC,
        background_NC=background_NC,
        width_N=now["line_width_bin"],
        offset_N=now["bin_offset"].astype(np.int64),
    )


def draw_counts(
    shots: Shots,
    *,
    number: np.random.Generator,
    place: np.random.Generator,
    background_number: np.random.Generator,
    background_place: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """One Poisson draw of every bin, int64 (N, C, E).

    A Poisson number of hits spread over the bins by the line's shape is an independent Poisson number in every bin, at
    a tenth of the draws. Places are float32: 4 million steps a bin.
    """
    channels, bins = shots.frame_shape
    frames = len(shots.width_N)
    hits_SC = number.poisson(shots.ideal_SC * shots.factor_NC[shots.frame_S]).reshape(-1)
    # + 0.5: bin b covers energies from b - 0.5 to b + 0.5.
    start_SC = (shots.track_SC + (shots.offset_N[shots.frame_S, None] + 0.5)).astype(np.float32).reshape(-1)
    width_SC = np.repeat(shots.width_N[shots.frame_S].astype(np.float32), channels)
    row_SC = (shots.frame_S[:, None] * channels + np.arange(channels)).reshape(-1) * bins
    energy_H = place.standard_normal(int(hits_SC.sum()), dtype=np.float32)
    energy_H *= np.repeat(width_SC, hits_SC)
    energy_H += np.repeat(start_SC, hits_SC)
    bin_H = np.floor(energy_H, out=energy_H).astype(np.int64)
    cell_H = (np.repeat(row_SC, hits_SC) + bin_H)[(bin_H >= 0) & (bin_H < bins)]

    noise_NC = background_number.poisson(shots.background_NC).reshape(-1)
    noise_H = (background_place.random(int(noise_NC.sum()), dtype=np.float32) * bins).astype(np.int64)
    noise_H += np.repeat(np.arange(frames * channels) * bins, noise_NC)

    size = frames * channels * bins
    return np.bincount(np.concatenate([cell_H, noise_H]), minlength=size).reshape(frames, channels, bins)


def expected_lines(shots: Shots) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the draw is a draw of.

    Returns:
        rate_NCE: Mean of `draw_counts`, float32 (N, C, E).
        signal_NCE: The photo lines alone, as an ideal detector would have them: gain 1, no dead channel, no offset.
    """
    frames, (channels, bins) = len(shots.width_N), shots.frame_shape
    rate_NCE = np.repeat(shots.background_NC[..., None] / bins, bins, axis=2)
    signal_NCE = np.zeros((frames, channels, bins))
    for rank in range(int(shots.rank_S.max(initial=-1)) + 1):
        S = np.flatnonzero(shots.rank_S == rank)
        N = shots.frame_S[S]  # at most one sub-pulse of each frame: += is safe
        for offset_N, target, factor_NC in (
            (np.zeros_like(N), signal_NCE, np.ones((len(N), channels))),
            (shots.offset_N[N], rate_NCE, shots.factor_NC[N]),
        ):
            share = _line_share(shots.track_SC[S] + offset_N[:, None], shots.width_N[N], bins)
            target[N] += (shots.ideal_SC[S] * factor_NC)[..., None] * share
    return rate_NCE.astype(np.float32), signal_NCE.astype(np.float32)


def _line_share(track_SC: Floats, width_S: Floats, bins: int) -> Floats:
    """Share of a Gaussian line that falls into each bin, (S, C, E); a table good to 1e-7 stands in for erf."""
    edge = (np.arange(bins + 1) - 0.5 - track_SC[..., None]) / width_S[:, None, None]
    return np.diff(np.interp(edge, _CDF_X, _CDF_Y), axis=-1)
