"""The caller's side of the warm worker: hand a job over, start a worker, ask how it is, end it. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filmloop.adapters.local.held import is_held
from filmloop.adapters.local.mark import BLANK, TOKEN
from filmloop.adapters.local.warmchild import WarmChild
from filmloop.adapters.local.workerline import (
    LOCK,
    SOCKET,
    WORKER_LOG,
    Installation,
    at,
    private_folder,
    receive,
    send,
)
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until

_STATUS_S = 1.0
_AT_ONCE_S = 0.2
_PAUSE_S = 0.02
_SPAWN_S = 30.0
_LOADS_S = 60.0
"""Until a worker has loaded it does not say what it is."""
_SPAWNS = 3
_LOG_BYTES = 1 << 20
_SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""NumPy's OpenBLAS starts its threads when it is imported, and a process with threads must not fork."""


class WarmWorker:
    """The worker that belongs to a folder, alive or not.

    Args:
        folder: The worker's own: its socket, lock and log. For its user alone.
        idle_s: A worker that we start ends after this time without a job.
        max_jobs: It begins anew after so many.
        patience_s: How long `hand_over` waits for a worker that is just starting.
    """

    def __init__(self, folder: Path, *, idle_s: float, max_jobs: int = 50, patience_s: float = 30.0) -> None:
        self.folder = folder
        self._idle_s, self._max_jobs, self._patience_s = idle_s, max_jobs, patience_s

    def start(self) -> None:
        """Start one in the background unless it is alive. Does not wait until it is ready.

        Raises:
            ConfigError: the folder is open to others.
            TransientError: the disk refuses.
        """
        private_folder(self.folder)
        if not is_held(self.folder / LOCK):
            self._spawn()

    def hand_over(self, run_folder: Path, lock: int) -> str:
        """Have the worker run the attempt of `run_folder`, with our lock; starts one if there is none.

        Returns:
            '' once a supervisor has the attempt; else why it has to be started cold.
        """
        try:
            private_folder(self.folder)
            return self._hand_over(run_folder, lock)
        except FilmloopError as exc:
            return exc.message

    def start_module(self, module: str, args: Sequence[str], output: int) -> WarmChild | None:
        """Run a module in a process that the worker forks; it dies with this one.

        Args:
            module: As for `python -m`.
            args: Its arguments.
            output: Descriptor that takes its standard output and error.

        Returns:
            The process; None if no worker is ready to fork it at once.
        """
        try:
            private_folder(self.folder)
        except FilmloopError:
            return None
        if not is_held(self.folder / LOCK):
            return None
        stdin, ours = os.pipe()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(line, _AT_ONCE_S)
            send(line, {"ask": "module", "module": module, "args": list(args), **_place()})
            if "takes" not in receive(line)[0]:
                raise EOFError("it cannot now")
            line.settimeout(_STATUS_S)
            send(line, {"ask": "begin"}, [stdin, output])
            pid = int(receive(line)[0]["pid"])
            line.settimeout(None)
        except (OSError, EOFError, ValueError, KeyError):
            line.close()
            os.close(ours)
            return None
        finally:
            os.close(stdin)
        return WarmChild(line, pid, open(ours, "w", encoding="utf-8"))

    def status(self) -> dict[str, Any]:
        """`state` is `none`, `starting` or `ready`; the last with `pid`, `since_utc`, `jobs`, `rss_mb`, and whether it `stands_in`."""
        if not is_held(self.folder / LOCK):
            return {"state": "none"}
        try:
            with self._line(_STATUS_S) as line:
                send(line, {"ask": "status"})
                found, _ = receive(line)
        except (OSError, EOFError, ValueError):
            return {"state": "starting"}  # or in the middle of an answer
        return {"state": "ready", **found}

    def stop(self) -> bool:
        """End the worker; jobs that it started go on. False if none was alive.

        Raises:
            TransientError: it does not end.
        """
        if not is_held(self.folder / LOCK):
            return False

        def ended() -> bool | None:
            pid = self._pid()  # asked again: it may have been about to begin anew
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            return None if is_held(self.folder / LOCK) else True

        wait_until(
            ended,
            deadline_s=30.0,
            what="The end of the warm worker",
            hint=f"See {self.folder / WORKER_LOG}; `fuser {self.folder / LOCK}` names it.",
        )
        return True

    def _hand_over(self, run_folder: Path, lock: int) -> str:
        end_s, spawns = time.monotonic() + self._patience_s, 0
        while (left_s := end_s - time.monotonic()) > 0:
            if not is_held(self.folder / LOCK):
                if spawns == _SPAWNS:
                    return f"the warm worker ends as soon as it has begun; see {self.folder / WORKER_LOG}"
                self._spawn()
                spawns += 1
            try:
                with self._line(left_s) as line:
                    send(line, {"ask": "run", "run_folder": str(run_folder), **_place()})
                    answer, _ = receive(line)
                    if "takes" in answer:
                        # Only now: a lock in the queue of a worker that hangs would look like a job that runs.
                        send(line, {"ask": "begin"}, [lock])
                        answer, _ = receive(line)
            except TimeoutError:
                break
            except (ConnectionError, FileNotFoundError, EOFError):
                # Not listening yet, or it ended with our request in its hands: the next one gets it.
                time.sleep(_PAUSE_S)
                continue
            if "supervisor" in answer or "claimed" in answer:
                return ""
            if "refused" in answer:
                return f"the warm worker cannot do it: {answer['refused']}"
            self._wait_for_the_end(end_s)  # it begins anew, or makes room for one of our installation
        return f"the warm worker was not ready within {self._patience_s:g} s"

    def _wait_for_the_end(self, end_s: float) -> None:
        """A worker that begins anew lets its lock go first."""
        short_s = min(end_s, time.monotonic() + 2.0)
        while is_held(self.folder / LOCK) and time.monotonic() < short_s:
            time.sleep(_PAUSE_S)

    @contextmanager
    def _line(self, timeout_s: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            self._connect(line, timeout_s)
            yield line

    def _connect(self, line: socket.socket, timeout_s: float) -> None:
        line.settimeout(timeout_s)
        with at(self.folder) as here:
            line.connect(f"{here}/{SOCKET}")

    def _pid(self) -> int | None:
        """Who listens, by the word of the kernel: a worker that loads does not answer yet."""
        try:
            with self._line(_STATUS_S) as line:
                cred = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                # 0 is one in another container's process namespace: to signal it would be to signal ourselves.
                return int.from_bytes(cred[:4], sys.byteorder) or None
        except OSError:
            return None

    def _spawn(self) -> None:
        """Start a worker; on return it listens, and loads."""
        log = self.folder / WORKER_LOG
        try:
            with disk_errors(log), log.open("ab") as out:
                if out.tell() > _LOG_BYTES:
                    out.truncate(0)
                done = subprocess.run(
                    [*self.command(), "--background"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **_SINGLE, TOKEN: BLANK},
                    timeout=_SPAWN_S,
                    check=False,
                )
        except subprocess.TimeoutExpired as exc:
            raise TransientError(f"the warm worker did not start within {_SPAWN_S:.0f} s") from exc
        if done.returncode:
            raise TransientError(f"the warm worker did not start; see {log}")

    def command(self) -> list[str]:
        """What is run, with `_SINGLE` and a blank mark in its environment."""
        argv = [sys.executable, "-u", "-m", "filmloop.adapters.local.worker", str(self.folder)]
        return [*argv, "--idle-s", f"{self._idle_s:g}", "--max-jobs", str(self._max_jobs)]

    def run(self) -> None:
        """Become the worker, in the foreground, in the place of one that a caller has started. Does not return.

        Raises:
            ConfigError: the folder is open to others.
            TransientError: one is alive already that somebody runs, or that does not answer.
        """
        private_folder(self.folder)
        found = wait_until(
            lambda: None if (told := self.status())["state"] == "starting" else told,
            deadline_s=_LOADS_S,
            what="An answer of the warm worker that is alive",
            hint=f"See {self.folder / WORKER_LOG}; `filmloop worker stop` ends it.",
        )
        if found.get("stands_in"):
            self.stop()  # it would have this one come back in vain for as long as it is not idle
        if is_held(self.folder / LOCK):
            raise TransientError("A warm worker is alive already.", hint="`filmloop worker stop` ends it.")
        os.execve(sys.executable, self.command(), {**os.environ, **_SINGLE, TOKEN: BLANK})


def _place() -> dict[str, Any]:
    """What a process that we start would inherit."""
    return {
        "installation": Installation.here().as_json(),
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": _umask(),
        "cores": sorted(os.sched_getaffinity(0)),
    }


def _umask() -> int:
    """Of this process; asked of /proc, because the system call for it sets one."""
    for row in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if row.startswith("Umask:"):
            return int(row.split()[1], 8)
    return 0o022
