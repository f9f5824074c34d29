"""The processes that train together: who they are and what they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from filmloop.training.gradients import averaging
from filmloop.training.shared_rows import TIMEOUT, SharedRows

_SUMS = 16
"""Numbers that ranks add up at once without messages."""
_DISK = timedelta(minutes=30)
"""Longest that a checkpoint may take. Who hangs is noticed before that by the training's own messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: 0 decides, writes checkpoints, logs and the bundle.
        world: Number of ranks.
        device: Where this rank computes.
        sums: Where the ranks show each other what is to be summed; None if by messages.
        beside: A group of their own for what threads do beside training; None if there is one rank.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sums: SharedRows | None = None
    beside: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the rank that scores what the new weights are compared with; with one rank it is the first."""
        return self.rank == self.world - 1

    def part(self, items: int) -> slice:
        """This rank's share of `items` things; the shares follow each other without overlap."""
        return slice(self.rank * items // self.world, (self.rank + 1) * items // self.world)

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, the same on each."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if self.sums is not None and len(values) <= _SUMS:
            self.sums.own_V[: len(values)] = total
            self.sums.show()
            total = self.sums.all_RV()[:, : len(values)].sum(dim=0)
        else:
            dist.all_reduce(total)
        return total.tolist()

    def joined(self, part_N: npt.NDArray[np.float64], items: int) -> npt.NDArray[np.float64]:
        """The numbers of all ranks, the same on each: every rank brings those of its `part` of `items` things."""
        all_N = np.zeros(items)
        all_N[self.part(items)] = part_N
        if self.world > 1:
            dist.all_reduce(torch.from_numpy(all_N))
        return all_N

    def of_first(self, value: float) -> float:
        """The number that rank 0 passes, on every rank."""
        return self.sum(value if self.is_first else 0.0)[0]

    def wrap(self, module: nn.Module, meanwhile: Callable[[], None] | None = None) -> nn.Module:
        """`module` with its gradients averaged over the ranks; rank 0's weights are everyone's from here on.

        Args:
            module: The network.
            meanwhile: Called in every backward pass, once the last gradients are on their way.
        """
        if self.world == 1:
            return module
        # The graph is the same in every step: DDP need not look for parameters that were not used.
        parallel = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=True)
        if meanwhile is not None:
            parallel.register_comm_hook(None, averaging(module, meanwhile))
        return parallel


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun started; alone without torchrun. gloo on CPUs, nccl where there are GPUs."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(device=device)
        return
    if world == int(os.environ.get("LOCAL_WORLD_SIZE", world)):
        # One host: no name to resolve, nothing leaves the machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        # On the training's group the messages of a thread would meet those of the training, and both would wait for ever.
        beside = dist.new_group(backend="gloo", timeout=_DISK)
        sums = SharedRows.meet(_SUMS, torch.float64)
        yield Ranks(rank=rank, world=world, device=device, sums=sums, beside=beside)
    finally:
        dist.destroy_process_group()
