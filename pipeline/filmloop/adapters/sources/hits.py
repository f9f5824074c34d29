"""Hit lists, as time-to-digital converters give them, to dense counts.

Shape suffixes: N frames, C channels, E energy bins, K hits of all frames, M places for hits of a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.core.types import BAD, SATURATED

_AT_ONCE = 32
"""Frames binned together: their counts as int64, 0.5 MB at 16 x 128, stay in a core's cache. Measured best of 16 to 1024."""

FrameShape = tuple[int, int]


def flat_bins(hits: npt.NDArray[Any], frame_shape: FrameShape) -> npt.NDArray[np.int64]:
    """Flat bin `channel * E + floor(energy)` of every hit, -1 for one outside the frame; int64 (K,).

    Args:
        hits: Flat bins (K,), or pairs of channel and energy in bins (K, 2), of any number type.
        frame_shape: (C, E).

    Raises:
        ValueError: neither of the two.
    """
    if hits.dtype.kind not in "uif" or not (hits.ndim == 1 or (hits.ndim == 2 and hits.shape[1] == 2)):
        raise ValueError(f"hits are {hits.dtype} {hits.shape}, not numbers (K,) or (K, 2)")
    channels, energy_bins = frame_shape
    if hits.ndim == 1:
        return _within(hits, channels * energy_bins)
    channel_K, energy_K = _within(hits[:, 0], channels), _within(hits[:, 1], energy_bins)
    return np.where((channel_K < 0) | (energy_K < 0), -1, channel_K * energy_bins + energy_K)


def _within(value_K: npt.NDArray[Any], end: int) -> npt.NDArray[np.int64]:
    """Values rounded down, -1 for those that are not in [0, end)."""
    # NaN compares false: it is outside.
    inside_K = (value_K >= 0) & (value_K < end)
    # -1 only after the cast: in an unsigned type it is the highest number, a bin of another frame.
    within_K = np.where(inside_K, value_K, 0).astype(np.int64)
    within_K[~inside_K] = -1
    return within_K


def padded_hits(
    hits: npt.NDArray[Any], count_N: npt.NDArray[Any] | None, frame_shape: FrameShape
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """From a rectangle with a row an event to one list.

    Args:
        hits: (N, M) flat bins or (N, M, 2) pairs.
        count_N: Hits of each event; None: all but the padding, which is negative or not finite.
        frame_shape: (C, E).

    Returns:
        bin_K flat bins; count_N hits of each frame; bad_N frames that claim a number of hits that cannot be, and get none.

    Raises:
        ValueError: the arrays are of another shape or type.
    """
    if hits.ndim not in (2, 3) or hits.dtype.kind not in "uif":
        raise ValueError(f"hits are {hits.dtype} {hits.shape}, not numbers (N, M) or (N, M, 2)")
    frames, places = hits.shape[:2]
    if count_N is None:
        channel_NM = hits if hits.ndim == 2 else hits[:, :, 0]
        hit_NM = channel_NM >= 0
        if hits.dtype.kind == "f":
            hit_NM &= np.isfinite(channel_NM)
        bad_N = np.zeros(frames, bool)
    else:
        if count_N.shape != (frames,) or count_N.dtype.kind not in "ui":
            raise ValueError(f"hit counts are {count_N.dtype} {count_N.shape}, not integers ({frames},)")
        bad_N = (count_N < 0) | (count_N > places)
        hit_NM = np.arange(places) < np.where(bad_N, 0, count_N)[:, None]
    return flat_bins(hits[hit_NM], frame_shape), np.count_nonzero(hit_NM, axis=1), bad_N


def ragged_counts(offset_N: npt.NDArray[Any], hits: int) -> npt.NDArray[np.int64]:
    """Hits of each frame from the place of each frame's first hit, and the end; int64 (N,).

    Raises:
        ValueError: the offsets do not lead from 0 to the number of hits without a step back.
    """
    if offset_N.ndim != 1 or not len(offset_N) or offset_N.dtype.kind not in "ui":
        raise ValueError(f"hit offsets are {offset_N.dtype} {offset_N.shape}, not integers (N + 1,)")
    place_N = offset_N.astype(np.int64)
    count_N = np.diff(place_N)
    if place_N[0] != 0 or place_N[-1] != hits or (count_N < 0).any():
        raise ValueError(f"hit offsets do not grow from 0 to the {hits} hits")
    return count_N


def dense_counts(
    bin_K: npt.NDArray[np.int64], count_N: npt.NDArray[np.int64], frame_shape: FrameShape
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Counts uint8 (N, C, E), clipped at 255, and `flags_N`; a frame with a hit outside (-1) is empty and `BAD`.

    Args:
        bin_K: Flat bins of the hits, frame after frame, as `flat_bins` gives them.
        count_N: Hits of each frame; their sum is K.
        frame_shape: (C, E).
    """
    bins, frames = frame_shape[0] * frame_shape[1], len(count_N)
    out = np.empty((frames, bins), np.uint8)
    flags_N = np.zeros(frames, np.uint8)
    end_N = np.cumsum(count_N)
    if len(bin_K) and bin_K.min() < 0:
        flags_N[np.unique(np.searchsorted(end_N, np.flatnonzero(bin_K < 0), side="right"))] = BAD
        bin_K = np.maximum(bin_K, 0)
    for start in range(0, frames, _AT_ONCE):
        part_N = count_N[start : start + _AT_ONCE]
        stop = start + len(part_N)
        index_K = np.repeat(np.arange(len(part_N), dtype=np.int64) * bins, part_N)
        index_K += bin_K[end_N[start] - count_N[start] : end_N[stop - 1]]
        counted = np.bincount(index_K, minlength=len(part_N) * bins).reshape(-1, bins)
        if counted.max() > 255:
            flags_N[start:stop] |= np.where(counted.max(axis=1) > 255, SATURATED, 0).astype(np.uint8)
            counted = np.minimum(counted, 255)
        out[start:stop] = counted
    bad_N = flags_N & BAD != 0
    if bad_N.any():
        out[bad_N], flags_N[bad_N] = 0, BAD
    return out.reshape(frames, *frame_shape), flags_N
