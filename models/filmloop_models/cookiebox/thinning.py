"""Poisson thinning for the baselines: split frames at random, predict one part from the other, no label needed.

A count is kept with probability `keep`. A predictor f of whole-frame rates sees the kept part scaled up, a / keep, and
(1 - keep) * f(a / keep) is its rate for the part left out. The rate that minimises the expected Poisson negative
log-likelihood is the true one. Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RATE_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinnedFrames:
    """One split of a set of frames.

    Attributes:
        input_NCE: float32, kept counts / keep: what a predictor of whole-frame rates takes.
        target_NCE: float32, the counts left out.
        keep: Probability of keeping a count.
    """

    input_NCE: npt.NDArray[np.float32]
    target_NCE: npt.NDArray[np.float32]
    keep: float

    def nll(self, rate_NCE: npt.NDArray[np.floating]) -> float:
        """Mean negative log-likelihood of the target, nats a frame, of whole-frame rates; without the log b! term."""
        rate = np.maximum(rate_NCE * np.float32(1 - self.keep), np.float32(RATE_FLOOR))
        lit = np.flatnonzero(self.target_NCE)
        hit = np.dot(self.target_NCE.reshape(-1)[lit], np.log(rate.reshape(-1)[lit]).astype(np.float64))
        return float((rate.sum(dtype=np.float64) - hit) / max(len(rate), 1))


def thin(counts_NCE: npt.NDArray[np.integer], *, keep: float, seed: int) -> ThinnedFrames:
    """Split every frame at random.

    Raises:
        ValueError: `keep` is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep = {keep} does not split anything: it must lie between 0 and 1")
    kept = np.random.default_rng(seed).binomial(counts_NCE, keep)
    return ThinnedFrames(
        input_NCE=(kept / keep).astype(np.float32), target_NCE=(counts_NCE - kept).astype(np.float32), keep=keep
    )
