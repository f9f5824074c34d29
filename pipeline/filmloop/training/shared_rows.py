"""Numbers that the ranks of one host show each other in memory, a row each, over and over.

gloo hands each message to threads of its own. With a rank on every core these have to wait until the kernel takes a core
from a rank, some milliseconds, for adding up 200 kB. Here a rank writes its row, says so, and reads everyone's.
Shape suffixes: R ranks, V values of a row.
"""

from __future__ import annotations

import mmap
import os
import platform
import select
import time
from contextlib import suppress
from datetime import timedelta
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from filmloop.core.errors import TransientError

TIMEOUT = timedelta(minutes=5)
"""Longest that a rank waits for the others; loading and hashing the shards is what may differ between them."""
_LINE = 8  # int64 of a cache line: no two ranks write to the same
_NAP_S = 20e-6
_SHORT_S = 2e-3
"""Ranks that keep pace differ by less; whoever waits longer looks whether the others live, once a millisecond."""


class SharedRows:
    """A row of each rank, in rounds: everyone writes its own, then reads all.

    There is room for two rounds. A rank writes in one once it has read the one before, so what it overwrites, two rounds
    back, everyone has read: whoever has written in the round in between was done with it.

    Args:
        memory: `bytes_for(ranks, values, dtype)` of it, zeros at first.
        rank: Who this is.
        ranks: How many share it.
        values: How wide a row is.
        dtype: Of the values.
    """

    def __init__(self, memory: mmap.mmap, rank: int, ranks: int, values: int, dtype: torch.dtype) -> None:
        self._rank, self._round = rank, 0
        lines = np.frombuffer(memory, np.int64, ranks * _LINE).reshape(ranks, _LINE)
        self._written_R, self._pid_R = lines[:, 0], lines[:, 1]
        self._pid_R[rank] = os.getpid()
        self._rows_2RV = torch.frombuffer(memory, dtype=dtype, offset=lines.nbytes).view(2, ranks, values)
        self._ended = select.poll()

    @classmethod
    def meet(cls, values: int, dtype: torch.dtype) -> Self | None:
        """What all ranks share from here on; None, on every rank, where one of them cannot. All call this at once."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        # All on this host, and stores are seen in the order in which they were made: docs/decisions/0011.
        if ranks != int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or platform.machine() not in ("x86_64", "AMD64"):
            return None
        size = cls.bytes_for(ranks, values, dtype)
        fd = _new_memory(size) if rank == 0 else None
        box = ["" if fd is None else f"/proc/{os.getpid()}/fd/{fd}"]
        dist.broadcast_object_list(box, src=0)
        memory = _mapped(box[0], size)
        rows = None if memory is None else cls(memory, rank, ranks, values, dtype)
        have_met = _all_can(rows is not None)
        if fd is not None:
            os.close(fd)
        return rows if _all_can(have_met and rows is not None and rows._watch()) else None

    @staticmethod
    def bytes_for(ranks: int, values: int, dtype: torch.dtype) -> int:
        """How much memory it takes."""
        return 8 * ranks * _LINE + dtype.itemsize * 2 * ranks * values

    @property
    def own_V(self) -> Tensor:
        """This rank's row of this round, to be written."""
        return self._rows_2RV[self._round % 2, self._rank]

    def show(self) -> None:
        """The own row is written."""
        self._written_R[self._rank] = self._round + 1

    def all_RV(self) -> Tensor:
        """Everyone's rows of this round, valid until the next one's are asked for; the next round begins.

        Raises:
            TransientError: a rank has ended, or does not come.
        """
        self._wait()
        self._round += 1
        return self._rows_2RV[(self._round - 1) % 2]

    def _wait(self) -> None:
        begun_s = time.perf_counter()
        while np.any(self._written_R <= self._round):
            waited_s = time.perf_counter() - begun_s
            if waited_s < _SHORT_S:
                time.sleep(_NAP_S)
                continue
            # One may have written its last and ended since we looked.
            has_ended = self._ended.poll(1) and np.any(self._written_R <= self._round)
            if has_ended or waited_s > TIMEOUT.total_seconds():
                late = ", ".join(map(str, np.flatnonzero(self._written_R <= self._round)))
                what = "has ended" if has_ended else f"did not come for {waited_s:.0f} s"
                raise TransientError(
                    f"The ranks lost each other: rank {late} {what}.",
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


def _new_memory(size: int) -> int | None:
    """Descriptor of so much memory, which has no name and is gone with the last process that has it; None for none."""
    with suppress(OSError):
        fd = os.memfd_create("filmloop-rows")
        try:
            # Taken now: a page that is missing later would be a bus error.
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.close(fd)
            raise
        return fd
    return None


def _mapped(path: str, size: int) -> mmap.mmap | None:
    """The memory that a rank has open under this path; None if it cannot be had."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    return None


def _all_can(can: bool) -> bool:
    """Whether every rank says so; the same on each."""
    votes = torch.tensor([int(can)])
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return bool(votes[0])
