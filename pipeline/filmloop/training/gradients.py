"""How the ranks average their gradients: in memory that ranks of one host share, or by messages.

gloo gives each bucket to threads of its own. With a rank on every core these have to wait until the kernel takes a core
from a rank, some milliseconds, for adding up 200 kB. In shared memory each rank writes its gradients, says so, and adds up
what all have written, in the order of the ranks: the same sum to the last bit on each.
Shape suffixes: R ranks, V values of all gradients.
"""

from __future__ import annotations

import mmap
import os
import platform
import select
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from filmloop.core.errors import TransientError

Hook = Callable[[object, Any], torch.futures.Future[Tensor]]
"""What DDP calls with each bucket of gradients, in the same order on every rank."""

TIMEOUT = timedelta(minutes=5)
"""Longest that a rank waits for the others; loading and hashing the shards is what may differ between them."""
_MEMORY = Path("/dev/shm")
_LINE = 8  # int64 of a cache line: no two ranks write to the same
_NAP_S = 20e-6
_SHORT_S = 2e-3
"""Ranks that keep pace differ by less; whoever waits longer looks whether the others live, once a millisecond."""


def averaging(module: nn.Module, meanwhile: Callable[[], None]) -> Hook:
    """How the gradients of `module` are averaged here, with `meanwhile` called once in every backward pass.

    Every rank calls this at the same time.
    """
    shared = SharedGradients.meet(module) if _may_share(module) else None
    return _by_messages(meanwhile) if shared is None else shared.averaging(meanwhile)


def _by_messages(meanwhile: Callable[[], None]) -> Hook:
    """What DDP does by itself with a bucket of gradients, and `meanwhile` behind the last one."""
    everyone = dist.group.WORLD
    assert everyone is not None, "the ranks have met"

    def average(_state, bucket):  # type: ignore[no-untyped-def]  # DDP takes no annotation but two of its own, unquoted
        averaged = allreduce_hook(everyone, bucket)
        if bucket.is_last():
            meanwhile()
        return averaged

    return average


def _may_share(module: nn.Module) -> bool:
    """Whether all ranks are on this host and see stores in the order in which they were made (docs/decisions/0011)."""
    return (
        dist.get_world_size() == int(os.environ.get("LOCAL_WORLD_SIZE", 0))
        and platform.machine() in ("x86_64", "AMD64")
        and all(values.dtype == torch.float32 and values.device.type == "cpu" for values in module.parameters())
    )


class SharedGradients:
    """The gradients of all ranks in one piece of memory; each adds them up for itself.

    There is room for two steps. A rank writes a step once it has read the one before, so what it overwrites, two steps
    back, everyone has read: whoever has written the step in between was done with it.

    Args:
        memory: `bytes_for(ranks, values)` of it, zeros at first.
        rank: Who this is.
        ranks: How many share it.
        values: float32 of all gradients.
    """

    def __init__(self, memory: mmap.mmap, rank: int, ranks: int, values: int) -> None:
        self._rank = rank
        lines = np.frombuffer(memory, np.int64, ranks * _LINE).reshape(ranks, _LINE)
        self._written_R, self._pid_R = lines[:, 0], lines[:, 1]
        self._pid_R[rank] = os.getpid()
        self._of_step_2RV = torch.frombuffer(memory, dtype=torch.float32, offset=lines.nbytes).view(2, ranks, values)
        self._ended = select.poll()
        self._step = self._begin = 0
        self._early: list[tuple[torch.futures.Future[Tensor], Tensor, slice]] = []

    @classmethod
    def meet(cls, module: nn.Module) -> Self | None:
        """What all ranks share from here on; None, on every rank, where one of them cannot. All call this at once."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        values = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        box = [str(_MEMORY / f"filmloop-{uuid.uuid4().hex}")]
        size = cls.bytes_for(ranks, values)
        memory = _mapped(box[0], size, is_new=True) if rank == 0 else None
        dist.broadcast_object_list(box, src=0)
        if rank != 0:
            memory = _mapped(box[0], size, is_new=False)
        shared = None if memory is None else cls(memory, rank, ranks, values)
        has_met = _all_can(shared is not None)
        if rank == 0:
            Path(box[0]).unlink(missing_ok=True)
        can_watch = has_met and shared is not None and shared._watch()
        return shared if _all_can(can_watch) else None

    @staticmethod
    def bytes_for(ranks: int, values: int) -> int:
        """How much memory it takes."""
        return 8 * ranks * _LINE + 4 * 2 * ranks * values

    def averaging(self, meanwhile: Callable[[], None]) -> Hook:
        """For DDP: writes each bucket, and reads all of them behind the last, after `meanwhile`."""

        def average(_state, bucket):  # type: ignore[no-untyped-def]  # as above
            gradients_V: Tensor = bucket.buffer()
            averaged: torch.futures.Future[Tensor] = torch.futures.Future()
            part = slice(self._begin, self._begin + len(gradients_V))
            self._of_step_2RV[self._step % 2, self._rank, part] = gradients_V
            self._begin = part.stop
            self._early.append((averaged, gradients_V, part))
            if bucket.is_last():
                self._written_R[self._rank] = self._step + 1
                meanwhile()
                self._read()
            return averaged

        return average

    def _read(self) -> None:
        self._wait()
        written_RV = self._of_step_2RV[self._step % 2]
        for averaged, gradients_V, part in self._early:
            torch.sum(written_RV[:, part], dim=0, out=gradients_V)
            averaged.set_result(gradients_V.div_(len(self._written_R)))
        self._early.clear()
        self._begin, self._step = 0, self._step + 1

    def _wait(self) -> None:
        """Until every rank has written this step.

        Raises:
            TransientError: one has ended, or does not come.
        """
        begun_s = time.perf_counter()
        while np.any(self._written_R <= self._step):
            waited_s = time.perf_counter() - begun_s
            if waited_s < _SHORT_S:
                time.sleep(_NAP_S)
                continue
            # One may have written its last and ended since we looked.
            gone = self._ended.poll(1) and np.any(self._written_R <= self._step)
            if gone or waited_s > TIMEOUT.total_seconds():
                late = ", ".join(map(str, np.flatnonzero(self._written_R <= self._step)))
                raise TransientError(
                    f"The ranks lost each other: rank {late} {'has ended' if gone else f'did not come for {waited_s:.0f} s'}.",
                    hint="Start the same job again: it goes on from its checkpoint. The log says which rank ended first.",
                )

    def _watch(self) -> bool:
        """Have the kernel tell of the end of the other ranks; False if it cannot."""
        try:
            for rank, pid in enumerate(self._pid_R.tolist()):
                if rank != self._rank:
                    self._ended.register(os.pidfd_open(pid), select.POLLIN)  # closed with the process
        except OSError:
            return False
        return True


def _mapped(path: str, size: int, *, is_new: bool) -> mmap.mmap | None:
    """Shared memory of this name; None if there is none, or not enough of it."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
        try:
            if is_new:
                # Taken now: a page that is missing later would be a bus error.
                os.posix_fallocate(fd, 0, size)
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    return None


def _all_can(can: bool) -> bool:
    """Whether every rank says so; the same on each."""
    votes = torch.tensor([int(can)])
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes[0])
