"""One edge a state folder: the lock that says who runs, and whether anybody does."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filmloop.config.paths import Home
from filmloop.core.errors import TransientError
from filmloop.core.fsio import try_lock

_PATIENCE_S = 1.0


def lock_path(home: Home) -> Path:
    """The lock file; it holds the pid of the edge that has it, and stays behind when that edge ends."""
    return home.edge / "lock"


@contextmanager
def only_edge(home: Home) -> Iterator[None]:
    """Be the only edge of `home` for the block.

    Raises:
        TransientError: another one runs; the message says which process.
    """
    # `is_alive` takes the lock for some microseconds: one refusal does not yet mean that an edge runs.
    end_s = time.monotonic() + _PATIENCE_S
    while True:
        with try_lock(lock_path(home)) as free:
            if free:
                yield
                return
        if time.monotonic() >= end_s:
            pid = _holder(home)
            raise TransientError(
                f"An edge already runs on {home.root} (pid {pid}).",
                hint="`filmloop status` shows it; end it with SIGTERM, or use another FILMLOOP_HOME.",
                ids={"pid": pid, "path": str(lock_path(home))},
            )
        time.sleep(0.05)


def is_alive(home: Home) -> bool:
    """Whether an edge runs on `home` now; true even if it hangs, false the moment its process is gone."""
    try:
        fd = os.open(lock_path(home), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _holder(home: Home) -> str:
    try:
        return lock_path(home).read_text(encoding="ascii").strip() or "?"
    except OSError:
        return "?"
