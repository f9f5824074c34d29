"""The batches of one rank, split for the loss; the next one is made while the ranks average their gradients.

An all-reduce of small gradients is mostly waiting: for the slower rank and for messages. Drawing and thinning the next
batch needs neither weights nor gradients, and takes longer than that.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from filmloop.training.plan import BatchPlan
from filmloop.training.pool import FramePool, Frames
from filmloop.training.thinning import thin


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Frames thinned into what the model sees and what it is scored on.

    Attributes:
        kept_NCE: float32 counts.
        rest_NCE: float32 counts; both together are the frame.
        keep_N11: float32, the share of each frame that was kept.
    """

    kept_NCE: Tensor
    rest_NCE: Tensor
    keep_N11: Tensor

    @classmethod
    def of(cls, frames: Frames) -> Split:
        """By the draws of their batch, on their device."""
        device = frames.counts_NCE.device
        keep_N = torch.from_numpy(frames.batch.keep_N).to(device)
        kept_NCE, rest_NCE = thin(frames.counts_NCE, keep_N, torch.from_numpy(frames.batch.draw_N).to(device))
        return cls(kept_NCE=kept_NCE, rest_NCE=rest_NCE, keep_N11=keep_N[:, None, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One rank's share of one step: its frames and, without labels, how they are split."""

    step: int
    frames: Frames
    split: Split | None


class Batches:
    """Gives the batch of a step, and may be told to make the one after it early.

    Args:
        pool: Where frames come from.
        plan: Which ones when.
        share: This rank's part of a global batch.
        waited: Told the seconds that frames were waited for.
    """

    def __init__(self, pool: FramePool, plan: BatchPlan, share: slice, waited: Callable[[float], None]) -> None:
        self._pool, self._plan, self._share, self._waited = pool, plan, share, waited
        self._following = 0
        self._early: TrainBatch | BaseException | None = None

    def __call__(self, step: int) -> TrainBatch:
        """The batch of `step`; steps come in order.

        Raises:
            DataError: a shard is damaged.
        """
        early, self._early, self._following = self._early, None, step + 1
        if isinstance(early, BaseException):
            raise early
        return early if early is not None and early.step == step else self._made(step)

    def make_following(self) -> None:
        """Make the batch of the following step now. What goes wrong is raised when that is asked for."""
        if self._following >= self._plan.steps:
            return
        try:
            self._early = self._made(self._following)
        except BaseException as exc:
            self._early = exc

    def _made(self, step: int) -> TrainBatch:
        begun_s = time.perf_counter()
        frames = self._pool.take(self._plan, step, self._share)
        self._waited(time.perf_counter() - begun_s)
        return TrainBatch(step=step, frames=frames, split=None if frames.label_NCE is not None else Split.of(frames))
