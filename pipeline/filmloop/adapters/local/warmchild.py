"""A process that the warm worker forked for this one, with what its callers need of `subprocess.Popen`."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
from contextlib import suppress
from typing import IO

from filmloop.adapters.local.workerline import receive, send


class WarmChild:
    """See `adapters.local.keeper`, which is at the other end of the line.

    Args:
        line: To its keeper; while it is open the process may live.
        pid: Its process id.
        stdin: Its standard input.

    Attributes:
        returncode: Its exit code, negative for a signal; None as long as nobody has asked since it ended.
    """

    def __init__(self, line: socket.socket, pid: int, stdin: IO[str]) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        self._look(0.0)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.returncode is None:
            with suppress(OSError):
                send(self._line, {"kill": True})

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[None, None]:
        """Give it the rest of its input, and wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        with suppress(OSError, ValueError):  # it has ended, or was given its input before
            if input is not None:
                self.stdin.write(input)
            self.stdin.close()
        self._look(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return None, None

    def _look(self, timeout_s: float | None) -> None:
        """Whether it has ended, within this time; without end for None."""
        if self.returncode is not None or not select.select([self._line], [], [], timeout_s)[0]:
            return
        try:
            self.returncode = int(receive(self._line)[0]["ended"])
        except (OSError, EOFError, ValueError, KeyError):
            self.returncode = -signal.SIGKILL  # its keeper was killed, and it dies with that one
        self._line.close()
