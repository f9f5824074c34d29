"""The mark of an attempt: an environment variable that all its processes carry, and by which they are found in /proc.

torchrun puts every rank into a session of its own, so a process group misses them; the environment is inherited by
all. A process that was forked and never called exec shows the environment of its ancestor's exec: it is marked by writing
over those bytes, which its children then show too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

from filmloop.core.environ import environ_of

TOKEN = "FILMLOOP_LAUNCH"
"""Environment variable that marks the processes of an attempt."""

BLANK = "0" * 32
"""Value of it in a process that may have to mark itself: as long as a token."""

_KILL_PATIENCE_S = 30.0
_EMPTY_LOOKS = 3


def marked_processes(token: str) -> list[int]:
    """Ids of the living processes that carry `token`, this one excepted."""
    mark = f"{TOKEN}={token}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        if mark in environ_of(entry):
            found.append(int(entry))
    return found


def kill_marked(token: str) -> int:
    """SIGKILL every process that carries `token` until none is left; returns how many there were.

    One look that finds none proves nothing: a process that was forked since /proc was listed is not in the list, and
    one in the middle of an exec shows an empty environment.
    """
    killed: set[int] = set()
    end_s, looks = time.monotonic() + _KILL_PATIENCE_S, 0
    while looks < _EMPTY_LOOKS and time.monotonic() < end_s:
        pids = marked_processes(token)
        looks = 0 if pids else looks + 1
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.01)
    return len(killed)


class Markable:
    """The place of this process's own mark; made while the variable is as exec left it, with the value `BLANK`."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        self._address = libc.getenv(TOKEN.encode()) if os.environ.get(TOKEN) == BLANK else None

    def mark(self, token: str) -> bool:
        """Mark this process and its children to come, forked or started; False if /proc does not show it."""
        if self._address is None or len(token) != len(BLANK):
            return False
        ctypes.memmove(self._address, token.encode(), len(token))
        os.environ[TOKEN] = token
        return f"{TOKEN}={token}".encode() in environ_of("self")
