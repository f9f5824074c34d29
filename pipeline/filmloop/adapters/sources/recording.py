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

from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock, clip_counts


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

        Raises:
            DataError: a frame is damaged.
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


def checked_counts(
    raw_NCE: npt.NDArray[Any], *, where: str, first: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Recorded counts of any number type as uint8 with `flags_N`.

    Args:
        raw_NCE: (N, C, E), integers, or floats that are whole numbers.
        where: Names file and array in the error.
        first: Index of the first frame, for the error.

    Raises:
        DataError: a count is negative, not finite or not a whole number; names the first such frame.
    """
    if raw_NCE.dtype == np.uint8:
        return raw_NCE.astype(np.uint8, copy=False), np.zeros(len(raw_NCE), np.uint8)
    bad_NCE = raw_NCE < 0
    if raw_NCE.dtype.kind == "f":
        bad_NCE |= ~np.isfinite(raw_NCE) | (raw_NCE != np.rint(raw_NCE))
    bad_N = bad_NCE.any(axis=(1, 2))
    if bad_N.any():
        row = int(bad_N.argmax())
        value = raw_NCE[row][bad_NCE[row]][0]
        raise DataError(
            f"{where}: frame {first + row} has a count of {value}; counts are whole numbers from 0 up.",
            hint="Is this the array of counts, not of rates or labels? Remove the frame or name another file.",
        )
    return clip_counts(raw_NCE)


def checked_labels(raw_NCE: npt.NDArray[Any], *, where: str, first: int) -> npt.NDArray[np.float32]:
    """Recorded labels as float32 (N, C, E).

    Raises:
        DataError: a label is not finite; names the first such frame.
    """
    label_NCE = raw_NCE.astype(np.float32)
    bad_N = ~np.isfinite(label_NCE).all(axis=(1, 2))
    if bad_N.any():
        raise DataError(f"{where}: the label of frame {first + int(bad_N.argmax())} is not a finite number.")
    return label_NCE
