"""A child made by fork alone, that keeps what its parent has loaded: it dies with the parent, and ends as a program does.

For processes with one thread: a lock that another thread held at the moment of the fork stays locked in the child for ever.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FIRST_OWN_FD = 3


class Forked:
    """A child of this process, with the methods of `subprocess.Popen` that a watcher needs.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        if self._code is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            finally:
                os.close(pidfd)
        code = self.poll()
        assert code is not None
        return code

    def terminate(self) -> None:
        """SIGTERM, unless it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Not waited for yet, so the number is still its own.
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(work: Callable[[], int | None]) -> Forked:
    """Start `work` in a child that the kernel kills when this process dies; its return value is the exit code."""
    parent = os.getpid()

    def tied() -> int | None:
        die_with(parent)
        return work()

    pid = os.fork()
    if not pid:
        run_child(tied)
    return Forked(pid)


def run_child(work: Callable[[], int | None]) -> NoReturn:
    """Do `work` in a child that was just forked, and end as an interpreter would. Never returns."""
    code = 1
    try:
        _as_a_fresh_program()
        code = _exit_code(work)
    except BaseException:
        traceback.print_exc()
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as at any exit
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process signal `number` when the thread that forked it ends.

    A parent that died before this call gives no signal any more: then end at once.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def close_inherited(*keep: int) -> None:
    """Close every file but the standard ones and those in `keep`, as exec does for a program."""
    low = _FIRST_OWN_FD
    for fd in sorted({fd for fd in keep if fd >= _FIRST_OWN_FD}):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def threads_here() -> int:
    """Threads of this process, those of native libraries included."""
    return len(os.listdir("/proc/self/task"))


def _as_a_fresh_program() -> None:
    """Forget what belongs to the parent: its handlers of signals and of the end."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    atexit._clear()


def _exit_code(work: Callable[[], int | None]) -> int:
    try:
        return work() or 0
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        print(exc.code, file=sys.stderr)
        return 1
