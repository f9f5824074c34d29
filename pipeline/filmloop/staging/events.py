"""Frames as a list of their hits: a fraction of the bytes where most bins are empty.

A frame of C x E bins is the sorted list of its hits' flat bin indices, each written as the step from the one before
(the first from 0), so a bin with three counts is its step and two zeros. `offsets[n]` to `offsets[n + 1]` are the hits
of frame n. Steps are small, so their upper byte packs to nothing: 1.6 times as fast as the counts of every bin at 600 hits a
frame, more with fewer.

Shape suffixes: N frames, C channels, E energy bins, H hits of all frames, N1 = N + 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmloop.core.errors import ConfigError, DataError

Hits = npt.NDArray[np.uint16]
Offsets = npt.NDArray[np.uint64]
Events = tuple[Hits, Offsets]
"""`(hits_H, offsets_N1)`."""

MAX_BINS = 65536
_BLOCK_FRAMES = 128  # 256 KB of 16x128 counts and what is made of them stay in a core's cache


def require_indexable(frame_shape: tuple[int, int]) -> None:
    """A hit has 16 bits for its bin.

    Raises:
        ConfigError: frames of `frame_shape` = (C, E) have more bins than that.
    """
    bins = frame_shape[0] * frame_shape[1]
    if bins > MAX_BINS:
        raise ConfigError(
            f"A frame of {frame_shape[0]} x {frame_shape[1]} has {bins} bins; an event list holds {MAX_BINS} at most.",
            hint='Set layout = "dense" in [staging], or fewer channels or energy_bins in [frame].',
        )


def pack_events(counts_NCE: npt.NDArray[np.uint8]) -> Events:
    """The hits of dense counts; 0.3 million frames of 16x128 with 600 hits each a CPU-second.

    Returns:
        uint16 (H,) steps and uint64 (N + 1,) offsets.

    Raises:
        ConfigError: a frame has more than 65536 bins.
    """
    require_indexable((counts_NCE.shape[1], counts_NCE.shape[2]))
    blocks = [_pack(counts_NCE[at : at + _BLOCK_FRAMES]) for at in range(0, len(counts_NCE), _BLOCK_FRAMES)]
    hits_H = np.concatenate([np.zeros(0, np.uint16), *(steps for steps, _ in blocks)])
    offsets_N1 = np.zeros(len(counts_NCE) + 1, np.uint64)
    np.cumsum(np.concatenate([np.zeros(0, np.int64), *(hits_N for _, hits_N in blocks)]), out=offsets_N1[1:])
    return hits_H, offsets_N1


def unpack_events(hits: Hits, offsets: Offsets, frame_shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Dense counts of the frames that `offsets` tells of, clipped at 255.

    Args:
        hits: uint16, the steps.
        offsets: uint64 (N + 1,), places in `hits`; may begin above 0.
        frame_shape: (C, E).

    Returns:
        uint8 (N, C, E).

    Raises:
        DataError: offsets that fall or end outside `hits`, or a hit outside its frame.
    """
    check_events(hits, offsets, frame_shape)
    counts_NK = np.zeros((len(offsets) - 1, frame_shape[0] * frame_shape[1]), np.uint8)
    for at in range(0, len(counts_NK), _BLOCK_FRAMES):
        _unpack(hits, offsets[at : at + _BLOCK_FRAMES + 1].astype(np.int64), counts_NK[at : at + _BLOCK_FRAMES])
    return counts_NK.reshape(-1, *frame_shape)


def check_events(hits: Hits, offsets: Offsets, frame_shape: tuple[int, int]) -> None:
    """Look at every step: a list that passes can be unpacked.

    Raises:
        DataError: types, offsets or bins are not those of an event list.
    """
    if hits.dtype != np.uint16 or offsets.dtype != np.uint64 or hits.ndim != 1 or offsets.ndim != 1:
        raise DataError(f"An event list is uint16 hits and uint64 offsets, not {hits.dtype} and {offsets.dtype}.")
    if len(offsets) == 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] > len(hits):
        raise DataError(f"The offsets of an event list fall, or end beyond its {len(hits)} hits.")
    filled_M = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(filled_M) == 0:
        return
    # The last bin of a frame is the sum of its steps; reduceat runs from one start to the next, the last to the end.
    first_M = (offsets[filled_M] - offsets[0]).astype(np.int64)
    # 32 bits hold the steps of a frame with up to 65536 hits, and take half the time of 64.
    wide = np.uint32 if (offsets[1:] - offsets[:-1]).max() <= MAX_BINS else np.uint64
    last_M = np.add.reduceat(hits[int(offsets[0]) : int(offsets[-1])], first_M, dtype=wide)
    if last_M.max() >= frame_shape[0] * frame_shape[1]:
        raise DataError(f"An event list has a hit in bin {last_M.max()} of a frame of {frame_shape}.")


def _pack(counts_NCE: npt.NDArray[np.uint8]) -> tuple[Hits, npt.NDArray[np.int64]]:
    """Steps, and hits of each frame."""
    frames, bins = len(counts_NCE), counts_NCE.shape[1] * counts_NCE.shape[2]
    flat = counts_NCE.reshape(-1)
    place_B = np.flatnonzero(flat != 0)  # of a bool: three times as fast as of the bytes themselves
    begin_B = np.zeros(len(place_B) + 1, np.int64)
    np.cumsum(flat[place_B], out=begin_B[1:])
    step_B = np.diff(place_B, prepend=0)
    first_N1 = np.searchsorted(place_B, np.arange(frames + 1) * bins)
    first_M = first_N1[:-1][first_N1[:-1] < first_N1[1:]]
    step_B[first_M] = place_B[first_M] % bins
    hits_H = np.zeros(begin_B[-1], np.uint16)
    hits_H[begin_B[:-1]] = step_B
    return hits_H, np.diff(begin_B[first_N1])


def _unpack(hits: Hits, offsets_N1: npt.NDArray[np.int64], out_NK: npt.NDArray[np.uint8]) -> None:
    """Fill `out_NK`, which is zero, with the counts of its frames."""
    steps_H = hits[offsets_N1[0] : offsets_N1[-1]]
    filled_M = np.flatnonzero(offsets_N1[:-1] < offsets_N1[1:])
    if len(filled_M) == 0:
        return
    # B: bins that were hit. A step of 0 is one more count of the bin before, unless a frame begins with it.
    first_M = (offsets_N1[:-1] - offsets_N1[0])[filled_M]
    is_bin_H = steps_H != 0
    is_bin_H[first_M] = True
    hit_B = np.flatnonzero(is_bin_H)
    step_B = steps_H[hit_B].astype(np.int64)
    # One running sum over all frames: a frame's first step also leads out of the frame before.
    last_M = np.add.reduceat(steps_H, first_M, dtype=np.int64)
    start_M = filled_M * out_NK.shape[1]
    step_B[np.searchsorted(hit_B, first_M)] += np.diff(start_M, prepend=0) - np.concatenate([[0], last_M[:-1]])
    out_NK.reshape(-1)[np.cumsum(step_B)] = np.minimum(np.diff(hit_B, append=len(steps_H)), 255)
