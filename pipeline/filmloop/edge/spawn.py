"""An edge beside the caller: started as a process of its own, waited for, and stopped again."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from filmloop.config.paths import Home
from filmloop.core.errors import TransientError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.edge.status import is_alive, read_status

_log = logging.getLogger(__name__)

_START_S = 60.0
# The edge promises to stop within 5 s; a loaded machine gets twice that.
_STOP_S = 10.0
_TAIL_LINES = 15


class EdgeProcess:
    """An edge that this process started. In a session of its own: Ctrl-C at the terminal does not reach it."""

    def __init__(self, process: subprocess.Popen[bytes], home: Home, log: Path) -> None:
        self._process, self._home, self._log_path = process, home, log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    def start(cls, argv: Sequence[str], home: Home, log: Path, *, deadline_s: float = _START_S) -> EdgeProcess:
        """Run `argv` (`filmloop edge run ...`) with its output in `log`; returns once it takes frames.

        Raises:
            TransientError: it ended at once or was not up in time; the message has the end of its log.
        """
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        edge = cls(process, home, log)
        try:
            wait_until(edge._is_up, deadline_s=deadline_s, what="The start of the edge", hint=f"See {log}.")
        except BaseException:
            edge.stop()
            raise
        return edge

    def is_running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def stop(self, deadline_s: float = _STOP_S) -> int:
        """SIGTERM, then SIGKILL after `deadline_s`; returns the exit code (negative: the signal). Idempotent."""
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                _log.warning("the edge (pid %d) did not stop within %.0f s: killed", self.pid, deadline_s)
                self._process.kill()
        return self._process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL_LINES:])

    def _is_up(self) -> bool | None:
        code = self._process.poll()
        status = read_status(self._home)
        # It may have had little data and be through already: that is a success too.
        if status is not None and status.pid == self.pid and status.state != "starting" and not code:
            return True
        if code is not None:
            self._fail(code)
        return None

    def _fail(self, code: int) -> NoReturn:
        ids = {"pid": str(self.pid), "path": str(self._log_path)}
        raise TransientError(
            f"The edge ended with exit code {code} while starting:\n{self.log_tail()}",
            hint=f"Its whole log is {self._log_path}."
            + (" Another edge runs: `filmloop status`." if is_alive(self._home) else ""),
            ids=ids,
        )
