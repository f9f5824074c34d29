"""What the runtimes share: a batch that is done, keys of moments, misfits, and cutting blocks into batches.

Shape suffixes: N frames, C channels, E energy bins, K moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.core.poisson import RATE_FLOOR
from filmloop.ports.runtime import Inferred
from filmloop_models.spec import SortKey

BACKLOG_FRAMES = 256
"""What a CPU takes at least at a time when frames have piled up, however small its batches are meant to be."""

Counts = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that was finished within `start`."""

    inferred: Inferred

    def result(self) -> Inferred:
        """At once."""
        return self.inferred


class Later:
    """A batch that is finished when somebody waits for it.

    Args:
        finish: Waits and gives the result; called once, with this batch, and then forgotten with all that it holds.
    """

    def __init__(self, finish: Callable[[Later], Inferred]) -> None:
        self._finish: Callable[[Later], Inferred] | None = finish
        self._inferred: Inferred | None = None

    def result(self) -> Inferred:
        """Wait for it."""
        if self._finish is not None:
            self._inferred, self._finish = self._finish(self), None
        assert self._inferred is not None
        return self._inferred


def phase_of(sort_key: SortKey | None, moment_NCK: Floats | None, frames: int) -> Floats:
    """The key of every frame, float32 (N,); NaN without a key."""
    if sort_key is None or moment_NCK is None:
        return np.full(frames, np.nan, np.float32)
    return sort_key.of_moments(moment_NCK)


def inferred_from_rates(
    sort_key: SortKey | None, counts_NCE: Counts, rate_NCE: Floats, *, dense: bool, surprise: bool
) -> Inferred:
    """A result whose rates are in host memory anyway."""
    return Inferred(
        phase_N=phase_of(sort_key, None, len(rate_NCE)) if sort_key is None else sort_key(rate_NCE),
        rate_NCE=rate_NCE if dense else None,
        surprise_N=surprise_of(counts_NCE, rate_NCE) if surprise else None,
    )


def surprise_of(counts_NCE: Counts, rate_NCE: Floats) -> Floats:
    """Half the Poisson deviance of each frame, nats: sum of rate - n + n log(n / rate); 0 for a perfect rate.

    Bins without a count need no logarithm, and nine of ten have none: 1 to 2 us a frame of 16x128.
    """
    frames = len(counts_NCE)
    count_NB, rate_NB = counts_NCE.reshape(frames, -1), rate_NCE.reshape(frames, -1)
    lit_N, lit_B = np.nonzero(count_NB)
    lit = count_NB[lit_N, lit_B].astype(np.float64)
    misfit = lit * np.log(lit / np.maximum(rate_NB[lit_N, lit_B], RATE_FLOOR)) - lit
    total_N = rate_NB.sum(axis=1, dtype=np.float64) + np.bincount(lit_N, misfit, minlength=frames)
    return np.asarray(total_N, np.float32)


def brightened(counts_NCE: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Counts so many times as high, clipped as a detector's are."""
    return np.minimum(counts_NCE.astype(np.int64) * factor, 255).astype(np.uint8)


def in_batches(infer_batch: Callable[[Counts], Floats], counts_NCE: Counts, batch_frames: int) -> Floats:
    """Rates of any number of frames from a function that takes at most `batch_frames`."""
    if len(counts_NCE) <= batch_frames:
        return infer_batch(counts_NCE)
    parts = [
        infer_batch(counts_NCE[start : start + batch_frames]).copy()
        for start in range(0, len(counts_NCE), batch_frames)
    ]
    return np.concatenate(parts)
