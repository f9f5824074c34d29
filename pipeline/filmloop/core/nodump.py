"""A process that holds secrets leaves no core dump."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """From now on this process is not dumped when it crashes, and only root can read its memory or environment.

    The limit alone would not do: the kernel does not look at it where dumps go to a program, as with systemd-coredump.
    A program that this one starts may be dumped again, if it raises its limit.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
