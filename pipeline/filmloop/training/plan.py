"""What each step trains on, and how fast: a pure function of (seed, step), so that any number of ranks and any number of
restarts walk through the same batches.

Frames lie in blocks, the unit of a read (`training.blocks`). An epoch goes through all blocks in a new order, cut into
windows; within a window every frame may follow every other. Where all frames fit into memory a window is a whole epoch,
but for the first one, whose small windows let training begin while the rest is still being read.

Shape suffixes: N frames of the global batch, B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import TrainHyper

FRESH, REPLAY = 0, 1
FIRST_WINDOW_BLOCKS = 16
"""Blocks of a window in the first epoch: 16,000 frames at the default chunk, some 0.1 s to decode."""
_THINNING = 2
_ORDER = (1, 3)


class Window(NamedTuple):
    """Some blocks of an epoch whose frames come in one random order."""

    epoch: int
    number: int


class FrameOrder:
    """Goes through the frames of one set in a new order each epoch, without a seam between epochs.

    Args:
        frames_B: Frames of each block, at least one.
        window_blocks: Blocks of a window.
        seed: Of the order.
        stream: Sets with different numbers have independent orders.

    Attributes:
        frames: Of all blocks.
        blocks_in_all: Number of blocks.
    """

    def __init__(self, frames_B: Sequence[int], *, window_blocks: int, seed: int, stream: int = FRESH) -> None:
        self._frames_B = np.asarray(frames_B, np.int64)
        self._first_B = np.cumsum(self._frames_B) - self._frames_B
        self._window_blocks, self._seed, self._stream = window_blocks, seed, _ORDER[stream]
        self._cuts: dict[int, tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]] = {}
        self._orders: dict[Window, npt.NDArray[np.int64]] = {}
        self.frames, self.blocks_in_all = int(self._frames_B.sum()), len(self._frames_B)

    def index(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The frames, numbered block after block, at the places `start` to `stop` of the endless walk."""
        parts = [self._order(window)[first:last] for window, first, last in self.pieces(start, stop)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def blocks(self, window: Window) -> npt.NDArray[np.int64]:
        """The blocks of a window."""
        return self._cut(window.epoch)[0][window.number]

    def after(self, window: Window) -> Window:
        """The next window."""
        if window.number + 1 < len(self._cut(window.epoch)[0]):
            return Window(window.epoch, window.number + 1)
        return Window(window.epoch + 1, 0)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Window, int, int]]:
        """The windows that these places lie in, each with the part of its own order that they cover."""
        while start < stop:
            epoch, within = divmod(start, self.frames)
            _, ends = self._cut(epoch)
            number = int(np.searchsorted(ends, within, side="right"))
            begin = int(ends[number - 1]) if number else 0
            last = min(int(ends[number]), within + stop - start)
            yield Window(epoch, number), within - begin, last - begin
            start += last - within

    def _cut(self, epoch: int) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
        """The blocks of each window of an epoch, and the places within it at which its windows end."""
        if epoch not in self._cuts:
            order_B = generator(self._seed, self._stream, epoch).permutation(len(self._frames_B))
            size = min(self._window_blocks, FIRST_WINDOW_BLOCKS) if epoch == 0 else self._window_blocks
            windows = np.array_split(order_B, math.ceil(len(order_B) / size))
            ends = np.cumsum([self._frames_B[blocks].sum() for blocks in windows])
            self._cuts = {old: cut for old, cut in self._cuts.items() if old >= epoch - 1}
            self._cuts[epoch] = windows, ends
        return self._cuts[epoch]

    def _order(self, window: Window) -> npt.NDArray[np.int64]:
        if window not in self._orders:
            parts = [np.arange(self._first_B[b], self._first_B[b] + self._frames_B[b]) for b in self.blocks(window)]
            order = np.concatenate(parts)
            generator(self._seed, self._stream, window.epoch, 1 + window.number).shuffle(order)
            # A batch may reach from one window into the next: the newest two are kept.
            self._orders = dict([*self._orders.items()][-1:])
            self._orders[window] = order
        return self._orders[window]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The global batch of one step.

    Attributes:
        index_N: int64, which training frames: fresh ones first, then replayed ones, which are numbered after them.
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
    """Which frames make up each batch: `replay_share` of it replayed ones, where there are any.

    Args:
        orders: Of the fresh and of the replayed frames; either may be empty.
        hyper: How to train.
        seed: Of the job.

    Attributes:
        steps: Of the whole plan.
        sizes: Fresh and replayed frames of a batch.
    """

    def __init__(self, orders: tuple[FrameOrder, FrameOrder], hyper: TrainHyper, seed: int) -> None:
        self._orders, self._hyper, self._seed = orders, hyper, seed
        replayed = min(round(hyper.replay_share * hyper.batch_frames), hyper.batch_frames - 1)
        if not orders[REPLAY].frames:
            replayed = 0
        elif not orders[FRESH].frames:
            replayed = hyper.batch_frames
        self.sizes = (hyper.batch_frames - replayed, replayed)
        self.steps = min(hyper.max_steps, math.ceil(hyper.max_epochs / self.epochs(1)))

    def epochs(self, step: int) -> float:
        """How often every fresh frame was seen before `step`; every replayed one, if there are no fresh ones."""
        counted = FRESH if self._orders[FRESH].frames else REPLAY
        return step * self.sizes[counted] / self._orders[counted].frames

    def places(self, step: int, which: int) -> tuple[int, int]:
        """First and last place of the batch in the walk through one set, the last not included."""
        return step * self.sizes[which], (step + 1) * self.sizes[which]

    def batch(self, step: int) -> Batch:
        """The global batch of `step`."""
        fresh_N, replay_N = (order.index(*self.places(step, which)) for which, order in enumerate(self._orders))
        size, rng = self._hyper.batch_frames, generator(self._seed, _THINNING, step)
        return Batch(
            index_N=np.concatenate([fresh_N, replay_N + self._orders[FRESH].frames]),
            keep_N=rng.uniform(self._hyper.keep_low, self._hyper.keep_high, size).astype(np.float32),
            draw_N=rng.integers(0, 1 << 62, size),
        )


def generator(seed: int, stream: int, number: int, sub: int = 0) -> np.random.Generator:
    """Philox is a counter-based generator: any (stream, seed, number) can be had without those before it."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, sub, stream]))


def spent(*, step: int, steps: int, elapsed_s: float, budget_s: float) -> float:
    """Share of the plan that is used up, 0 to 1: of its steps or of its time, whichever is further."""
    return min(1.0, max(step / steps, elapsed_s / max(budget_s, 1e-9)))


def learning_rate(hyper: TrainHyper, *, step: int, steps: int, share: float) -> float:
    """Linear warm-up over the first steps of a plan of `steps`, times a cosine that is 0 when all of it is `spent`."""
    # A run of a few dozen steps would otherwise end inside its warm-up.
    warmup = min(hyper.warmup_steps, steps // 10)
    rising = min(1.0, (step + 1) / (warmup + 1))
    return hyper.learning_rate * rising * 0.5 * (1.0 + math.cos(math.pi * share))
