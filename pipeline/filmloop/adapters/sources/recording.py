"""What recorded frames look like to the replay source, whatever file they come from.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from filmloop.core.types import BAD, FrameBlock, clip_counts

_LARGEST_LABEL = np.float32(np.finfo(np.float16).max)


class Recording(Protocol):
    """Recorded frames of one or more runs, in order.

    Attributes:
        frame_shape: (C, E) of every frame.
        has_labels: Whether every frame has a label.
        run_frames: Number of frames of each run.
        block_frames: How many frames are cheap to read at once.
    """

    frame_shape: tuple[int, int]
    has_labels: bool
    run_frames: tuple[int, ...]
    block_frames: int

    def read(self, run: int, start: int, stop: int, *, labels: bool) -> FrameBlock:
        """Frames of the `run`-th run from `start`, at least one and none beyond `stop`; its `run_number` is `run`.

        A frame that is damaged by itself is flagged `BAD`.

        Raises:
            DataError: the file cannot be read there.
        """

    def position_after(self, run: int, pulse_id: int) -> int:
        """Index of the first frame after `pulse_id` in the `run`-th run."""

    def close(self) -> None:
        """Release files."""


def locate(sizes: Sequence[int], position: int) -> tuple[int, int]:
    """In which of several parts of `sizes` frames a position lies, and the position of that part's first frame."""
    ends = list(accumulate(sizes))
    part = bisect_right(ends, position)
    return part, ends[part] - sizes[part]


def checked_counts(raw_NCE: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Recorded counts (N, C, E) of any number type as uint8, with `flags_N`.

    A frame with a count that is negative, not finite or not a whole number is empty and flagged `BAD`.
    """
    if raw_NCE.dtype == np.uint8:
        return raw_NCE.astype(np.uint8, copy=False), np.zeros(len(raw_NCE), np.uint8)
    if (fitting_NCE := _as_they_are(raw_NCE)) is not None:
        return fitting_NCE, np.zeros(len(raw_NCE), np.uint8)
    bad_N = no_counts(raw_NCE)
    # Cleared before the cast: what a NaN becomes as an integer is up to the processor.
    sound_NCE = np.where(bad_N[:, None, None], 0, raw_NCE) if bad_N.any() else raw_NCE
    counts_NCE, flags_N = clip_counts(sound_NCE)
    return counts_NCE, flags_N | flagged(bad_N)


def _as_they_are(raw_NCE: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """The counts, if all of them are whole numbers from 0 to 255: two passes where the full check takes six."""
    with np.errstate(invalid="ignore"):
        fitting_NCE = raw_NCE.astype(np.uint8)
    return fitting_NCE if np.array_equal(fitting_NCE, raw_NCE) else None


def no_counts(raw_NCE: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which frames hold something that is no count: counts are whole numbers from 0 up; bool (N,)."""
    bad_NCE = raw_NCE < 0
    if raw_NCE.dtype.kind == "f":
        bad_NCE |= ~np.isfinite(raw_NCE) | (raw_NCE != np.rint(raw_NCE))
    return np.asarray(bad_NCE.any(axis=(1, 2)))


def checked_labels(raw_NCE: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Recorded labels as float32 (N, C, E), with `flags_N`: a frame whose label is no finite float16 is `BAD`."""
    with np.errstate(over="ignore"):
        label_NCE = raw_NCE.astype(np.float32)
    # NaN compares false. A shard holds labels as float16, and would refuse a whole block for one frame.
    return label_NCE, flagged(np.asarray((~(np.abs(label_NCE) <= _LARGEST_LABEL)).any(axis=(1, 2))))


def flagged(bad_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """`flags_N` of frames of which these are bad."""
    return np.where(bad_N, BAD, 0).astype(np.uint8)
