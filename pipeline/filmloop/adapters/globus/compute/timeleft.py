"""How long the batch job that a task finds itself in goes on."""

from __future__ import annotations

import os
import time

from filmloop.adapters.globus.compute.wire import TaskRequest

_LATE_S = 60.0


def save_after_s(request: TaskRequest) -> float:
    """Never before the deadline, unless the batch job ends before that: Slurm says when, PBS does not.

    A batch job that has done other things before has less than its walltime left. Its queue tells the worker with SIGTERM.
    """
    late = request.job.deadline_s + _LATE_S
    left_s = _left_s()
    left_s = request.walltime_s if left_s is None else left_s
    return late if left_s is None else max(1.0, min(late, left_s - request.save_before_s))


def ends_soon(request: TaskRequest) -> bool:
    """Whether there is less time to train than a save takes; a job that is short as a whole has a quarter of it."""
    left_s, save_s = _left_s(), request.save_before_s
    return left_s is not None and left_s < save_s + min(save_s, (request.walltime_s or float("inf")) / 4)


def _left_s() -> float | None:
    """What is left of the batch job, if the batch system says when it ends."""
    ends = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(ends) - time.time() if ends.isdigit() else None
