"""An edge beside the caller: started as a process of its own, waited for, and stopped again."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from filmloop.config.paths import Home
from filmloop.core.errors import AuthError, ConfigError, DataError, FilmloopError, TransientError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.edge.status import is_alive, read_status

_log = logging.getLogger(__name__)

_START_S = 60.0
# The edge promises to stop within 5 s; a loaded machine gets twice that.
_STOP_S = 10.0
_TAIL_LINES = 15
# How the command line ends with an error of ours: its kind and message, some ids, the hint.
_ERROR = re.compile(r"^(?:\w+Error) (?P<message>.+)$", re.MULTILINE)
_HINT = re.compile(r"^  hint: (?P<hint>.+)$", re.MULTILINE)
_KINDS: dict[int, type[FilmloopError]] = {kind.exit_code: kind for kind in (ConfigError, AuthError, DataError)}


class EdgeProcess:
    """An edge that this process started. In a session of its own: Ctrl-C at the terminal does not reach it.

    Its standard input is a pipe that nobody writes to and that closes with this process, however this ends: an edge
    run with `--tied` stops then.

    Args:
        process: The child.
        home: Its state folder.
        log: Where its output goes.
        log_start: Size of the log before this start: what comes after is of this life.
    """

    def __init__(self, process: subprocess.Popen[bytes], home: Home, log: Path, log_start: int) -> None:
        self._process, self._home, self._log_path, self._log_start = process, home, log, log_start

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    def start(cls, argv: Sequence[str], home: Home, log: Path, *, deadline_s: float = _START_S) -> EdgeProcess:
        """Run `argv` (`filmloop edge run ...`) with its output in `log`; returns once it takes frames.

        Raises:
            ConfigError, AuthError, DataError: it ended with such an error; message and hint are its own.
            TransientError: it ended otherwise or was not up in time; the message has the end of its log.
        """
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as out:
                log_start = out.tell()
                process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        edge = cls(process, home, log, log_start)
        try:
            wait_until(edge._is_up, deadline_s=deadline_s, what="The start of the edge", hint=f"See {log}.")
        except BaseException:
            edge.stop()
            raise
        return edge

    def is_running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def raise_if_ended(self) -> None:
        """Nothing while the process is there.

        Raises:
            ConfigError, AuthError, DataError: it ended with such an error; message and hint are its own.
            TransientError: it ended otherwise, be it that somebody told it to stop.
        """
        code = self._process.poll()
        if code is not None:
            self._fail(code)

    def stop(self, deadline_s: float = _STOP_S) -> int:
        """SIGTERM, then SIGKILL after `deadline_s`; returns the exit code (negative: the signal). Idempotent."""
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                _log.warning("the edge (pid %d) did not stop within %.0f s: killed", self.pid, deadline_s)
                self._process.kill()
        code = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def log_tail(self) -> str:
        """The last lines of its log, none of an earlier life."""
        return "\n".join(self._log_text().splitlines()[-_TAIL_LINES:])

    def _log_text(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _is_up(self) -> bool | None:
        code = self._process.poll()
        status = read_status(self._home)
        state = status.state if status is not None and status.pid == self.pid else ""
        # A failing edge says "stopped" before it ends: only its exit code tells that it was through with few data.
        if (state in ("running", "drained") and not code) or (state == "stopped" and code == 0):
            return True
        if code is not None:
            self._fail(code)
        return None

    def _fail(self, code: int) -> NoReturn:
        text = self._log_text()
        errors = list(_ERROR.finditer(text))
        said = errors[-1]["message"] if errors else f"\n{self.log_tail()}"
        hint = _HINT.search(text, errors[-1].end()) if errors else None
        hints = [hint["hint"]] if hint else []
        hints.append(f"Its whole log is {self._log_path}.")
        if is_alive(self._home):
            hints.append("Another edge runs: `filmloop status`.")
        raise _KINDS.get(code, TransientError)(
            f"The edge ended with exit code {code}: {said}",
            hint=" ".join(hints),
            ids={"pid": str(self.pid), "path": str(self._log_path)},
        )
