"""Which frames are staged when not all are, and how many frames each of them stands for.

One frame in n is kept, picked by a hash of its pulse id; beside them every frame that surprises the live weights. A
frame that was kept with probability p gets the weight 1 / p, so a weighted sum over what was kept has the
expectation of the sum over all (Horvitz and Thompson, J. Am. Stat. Assoc. 47, 663, 1952): weight n for a frame that
only the hash kept, 1 for a surprising one, which was certain to be kept whatever the hash said. Unweighted, the
surprising frames would count n times as much as they should.

That holds because the threshold for a block is fixed before the block is seen, and knows nothing of the hash.

Shape suffixes: N frames, W frames in the window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import StagingSection
from filmloop.core.holdout import splitmix64

# Any constant: it makes the choice independent of the hold-out, which hashes the pulse id alone.
_SALT = np.uint64(0x53414D504C455221)

WINDOW_FRAMES = 8192
"""The threshold is a quantile of this many frames, so with keep_surprising = 0.01 it is good to a tenth of that share."""

_FIRST_FRAMES = 256
_RENEW_FRAMES = 1024


class Sampler:
    """Chooses frames of one stream, block by block. The same blocks give the same choice.

    Args:
        section: `keep_every` and `keep_surprising`.
    """

    def __init__(self, section: StagingSection) -> None:
        self._every = section.keep_every
        # Where all are kept, none has to be kept for its surprise.
        self._share = section.keep_surprising if section.keep_every > 1 else 0.0
        self._threshold = float("inf")
        self._window_W = np.empty(WINDOW_FRAMES, np.float32)
        self._seen = self._seen_at_renewal = 0

    @property
    def threshold(self) -> float:
        """A frame of the next block is surprising above this; infinite before there is enough to tell."""
        return self._threshold

    def choose(
        self, pulse_id_N: npt.NDArray[np.uint64], surprise_N: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Which frames of a block to keep.

        Args:
            pulse_id_N: uint64 (N,).
            surprise_N: float32 (N,), larger where the weights explain a frame worse; NaN where nobody knows.

        Returns:
            bool (N,), kept or not; and float32 (N,), the weight of each frame if it is kept.
        """
        if self._every == 1:
            return np.ones(len(pulse_id_N), np.bool_), np.ones(len(pulse_id_N), np.float32)
        picked_N = splitmix64(pulse_id_N.astype(np.uint64) ^ _SALT) % np.uint64(self._every) == 0
        weight_N = np.full(len(pulse_id_N), self._every, np.float32)
        if surprise_N is None or self._share == 0.0:
            return picked_N, weight_N
        surprising_N = surprise_N > self._threshold
        weight_N[surprising_N] = 1.0
        self._learn(surprise_N)
        return picked_N | surprising_N, weight_N

    def _learn(self, surprise_N: npt.NDArray[np.float32]) -> None:
        """Renew the threshold from the newest frames, those that were not kept included."""
        known_N = surprise_N[np.isfinite(surprise_N)][-WINDOW_FRAMES:]
        at = (self._seen + np.arange(len(known_N))) % WINDOW_FRAMES
        self._window_W[at] = known_N
        self._seen += len(known_N)
        # Sorting the window costs as much as hashing a thousand frames: not for every block.
        due = _FIRST_FRAMES if self._seen_at_renewal == 0 else self._seen_at_renewal + _RENEW_FRAMES
        if self._seen >= due:
            self._seen_at_renewal = self._seen
            self._threshold = float(np.quantile(self._window_W[: self._seen], 1.0 - self._share))
