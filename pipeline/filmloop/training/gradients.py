"""How the ranks average their gradients: in memory that ranks of one host share, or by messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from filmloop.training.shared_rows import SharedRows

Hook = Callable[[object, Any], torch.futures.Future[Tensor]]
"""What DDP calls with each bucket of gradients, in the same order on every rank."""


def averaging(module: nn.Module, meanwhile: Callable[[], None]) -> Hook:
    """How the gradients of `module` are averaged here, with `meanwhile` called once in every backward pass.

    Every rank calls this at the same time.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = None
    if all((parameter.dtype, parameter.device.type) == (torch.float32, "cpu") for parameter in parameters):
        rows = SharedRows.meet(sum(parameter.numel() for parameter in parameters), torch.float32)
    return _by_messages(meanwhile) if rows is None else _in_memory(rows, meanwhile)


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


def _in_memory(rows: SharedRows, meanwhile: Callable[[], None]) -> Hook:
    """Each rank shows its buckets in one row and, behind `meanwhile`, adds up all rows in the same order as the others."""
    waiting: list[tuple[torch.futures.Future[Tensor], Tensor, slice]] = []

    def average(_state, bucket):  # type: ignore[no-untyped-def]  # as above
        gradients: Tensor = bucket.buffer()
        averaged: torch.futures.Future[Tensor] = torch.futures.Future()
        begin = waiting[-1][2].stop if waiting else 0
        part = slice(begin, begin + len(gradients))
        rows.own_V[part] = gradients
        waiting.append((averaged, gradients, part))
        if bucket.is_last():
            rows.show()
            meanwhile()
            all_RV = rows.all_RV()
            for early, values, at in waiting:
                torch.sum(all_RV[:, at], dim=0, out=values)
                early.set_result(values.div_(len(all_RV)))
            waiting.clear()
        return averaged

    return average
