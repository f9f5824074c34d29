"""The arrays that travel inside a process.

Shape suffixes: N frames, C channels (angles), E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SATURATED = 1
"""Bit of `flags_N`: a count of this frame was above 255 and was clipped."""

BAD = 2
"""Bit of `flags_N`: this frame is damaged. Its place in the stream counts, its numbers mean nothing; never staged."""

MAX_RUN = 999_999
"""The highest run number: the folder of a run has six digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBlock:
    """Frames of one run, in the order of their arrival.

    Attributes:
        run_number: The run, 0 to `MAX_RUN`; a `pulse_id` is unique within it.
        pulse_id_N: uint64 (N,).
        counts_NCE: uint8 (N, C, E), detector counts, clipped at 255.
        flags_N: uint8 (N,), bits `SATURATED` and `BAD`.
        label_NCE: float32 (N, C, E) target rates where the source has them (simulated truth, published Y), else None.
    """

    run_number: int
    pulse_id_N: npt.NDArray[np.uint64]
    counts_NCE: npt.NDArray[np.uint8]
    flags_N: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of frames, N."""
        return len(self.pulse_id_N)

    def __getitem__(self, part: slice) -> FrameBlock:
        """The frames of a slice, without a copy."""
        return FrameBlock(
            run_number=self.run_number,
            pulse_id_N=self.pulse_id_N[part],
            counts_NCE=self.counts_NCE[part],
            flags_N=self.flags_N[part],
            label_NCE=None if self.label_NCE is None else self.label_NCE[part],
        )


def clip_counts(counts: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Counts (N, C, E) of any integer type as uint8, and the `flags_N` that says which frames were clipped."""
    saturated_N = (counts > 255).any(axis=(1, 2))
    flags_N: npt.NDArray[np.uint8] = np.where(saturated_N, SATURATED, 0).astype(np.uint8)
    return np.clip(counts, 0, 255).astype(np.uint8), flags_N
