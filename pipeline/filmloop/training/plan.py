"""What each step trains on, and how fast: a pure function of (seed, step), so that any number of ranks and any number of
restarts walk through the same batches.

Shape suffix: N frames of the global batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import TrainHyper

_ORDER, _THINNING = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The global batch of one step.

    Attributes:
        index_N: int64, which training frames.
        keep_N: float32, the share of its counts that the model sees of each.
        draw_N: int64, what the thinning of each is drawn from.
    """

    index_N: npt.NDArray[np.int64]
    keep_N: npt.NDArray[np.float32]
    draw_N: npt.NDArray[np.int64]

    def __getitem__(self, part: slice) -> Batch:
        """One rank's share."""
        return Batch(index_N=self.index_N[part], keep_N=self.keep_N[part], draw_N=self.draw_N[part])


class BatchPlan:
    """Goes through all `frames` training frames in a new order each epoch, without a seam between epochs."""

    def __init__(self, frames: int, hyper: TrainHyper, seed: int) -> None:
        self._frames, self._hyper, self._seed = frames, hyper, seed
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self.steps = min(hyper.max_steps, math.ceil(hyper.max_epochs * frames / hyper.batch_frames))

    def epochs(self, step: int) -> float:
        """How often every frame was seen before `step`."""
        return step * self._hyper.batch_frames / self._frames

    def batch(self, step: int) -> Batch:
        """The global batch of `step`."""
        size = self._hyper.batch_frames
        place = np.arange(step * size, (step + 1) * size)
        epoch_N, within_N = np.divmod(place, self._frames)
        index_N = np.empty(size, np.int64)
        for epoch in np.unique(epoch_N):
            index_N[epoch_N == epoch] = self._order(int(epoch))[within_N[epoch_N == epoch]]
        rng = self._generator(_THINNING, step)
        return Batch(
            index_N=index_N,
            keep_N=rng.uniform(self._hyper.keep_low, self._hyper.keep_high, size).astype(np.float32),
            draw_N=rng.integers(0, 1 << 62, size),
        )

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old >= epoch - 1}
            self._orders[epoch] = self._generator(_ORDER, epoch).permutation(self._frames)
        return self._orders[epoch]

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        """Philox is a counter-based generator: any (stream, seed, number) can be had without those before it."""
        return np.random.Generator(np.random.Philox(key=[self._seed, number], counter=[0, 0, 0, stream]))


def spent(*, step: int, steps: int, elapsed_s: float, budget_s: float) -> float:
    """Share of the plan that is used up, 0 to 1: of its steps or of its time, whichever is further."""
    return min(1.0, max(step / steps, elapsed_s / budget_s))


def learning_rate(hyper: TrainHyper, *, step: int, steps: int, share: float) -> float:
    """Linear warm-up over the first steps of a plan of `steps`, times a cosine that is 0 when all of it is `spent`."""
    # A run of a few dozen steps would otherwise end inside its warm-up.
    warmup = min(hyper.warmup_steps, steps // 10)
    rising = min(1.0, (step + 1) / (warmup + 1))
    return hyper.learning_rate * rising * 0.5 * (1.0 + math.cos(math.pi * share))
