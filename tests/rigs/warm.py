"""Waiting for a warm worker, and killing one."""

from __future__ import annotations

import os
import signal

from filmloop.adapters.local.held import is_held
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.adapters.local.workerline import LOCK
from filmloop.core.retry import wait_until


def ready(worker: WarmWorker) -> int:
    """Wait until it is; returns its process id."""
    found = wait_until(
        lambda: status if (status := worker.status())["state"] == "ready" else None,
        deadline_s=300,
        what="the warm worker",
    )
    return int(found["pid"])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(worker: WarmWorker) -> None:
    wait_until(lambda: None if is_held(worker.folder / LOCK) else True, deadline_s=60, what="the worker's end")
