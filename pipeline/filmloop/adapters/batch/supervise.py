"""Runs one start of an attempt on the job's first node: `python -m filmloop.adapters.batch.supervise FOLDER TOKEN VARIABLE`.

It takes the place of the batch script's shell. Runs the command of `batch.json` on all nodes, ends it at the deadline, on
request, and when told to stop itself (preemption, the time limit, a cancel), and writes `exit.json`. A job that was
requeued comes here again. Imports no torch.

A node that the batch system has lost sight of may run on, while the job starts again on others. Whoever started last is in
`started.json`: the former start ends itself, and writes nothing into the folder any more.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.batch.attempt import HOST, PORT, RUN, Attempt, Started
from filmloop.adapters.local.mark import TOKEN, kill_marked
from filmloop.adapters.local.runfolder import ATTEMPT_LINE, BUNDLE_RESULT, CANCEL, ERROR, EXIT, LOG, Exit, Reason
from filmloop.core.clock import utc_now
from filmloop.core.errors import FilmloopError

_LOOK_S = 0.2
_STOP_S = 10.0
"""Longest that asking the ranks to stop may take."""
LINGER_S = 20.0
"""A rank that failed has the others fail within seconds; what goes on so long after its error waits for a dead node."""


def on_this_node(command: tuple[str, ...], token: str) -> list[str]:
    """The command with this node's name, a port that is free here, and an id that no other start has."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    values = {HOST: socket.gethostname(), PORT: str(port), RUN: f"{token[:12]}-{int(time.time() * 1000):x}"}
    return [_filled(word, values) for word in command]


def _filled(word: str, values: Mapping[str, str]) -> str:
    for mark, value in values.items():
        word = word.replace(mark, value)
    return word


Start = Callable[[Attempt, Path], subprocess.Popen[bytes]]
"""Starts the command of an attempt, marked with its token."""


def start(attempt: Attempt, folder: Path, *, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    """Start the command; ranks on other nodes inherit its environment through the batch system.

    `before` is called in the child before it becomes the command.
    """
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environ |= {"OMP_NUM_THREADS": str(attempt.threads), TOKEN: attempt.token}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            on_this_node(attempt.command, attempt.token),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            process_group=0,
            preexec_fn=before,
        )


def watch(
    child: subprocess.Popen[bytes], attempt: Attempt, folder: Path, told_to_stop: list[int], mine: Started
) -> Reason | None:
    """Wait until the command has ended, or has to; None if the folder is another start's by now."""
    began_s = time.monotonic()
    error_s: float | None = None
    pidfd = os.pidfd_open(child.pid)
    try:
        while not select.select([pidfd], [], [], _LOOK_S)[0]:
            if _is_replaced(folder, mine):
                return None
            if (folder / CANCEL).exists():
                return "cancelled"
            if told_to_stop or time.monotonic() - began_s > attempt.save_after_s:
                return "terminated"
            if time.monotonic() - began_s > attempt.deadline_s:
                return "deadline"
            if error_s is None and (folder / ERROR).exists():
                error_s = time.monotonic()
            if error_s is not None and time.monotonic() - error_s > LINGER_S:
                return "ended"
    finally:
        os.close(pidfd)
    # Who cancels or preempts a job tells everybody at once: the command may be gone before this loop has looked.
    if _is_replaced(folder, mine):
        return None
    if (folder / CANCEL).exists():
        return "cancelled"
    return "terminated" if told_to_stop else "ended"


def _is_replaced(folder: Path, mine: Started) -> bool:
    with suppress(FilmloopError, OSError):  # a disk that does not answer says nothing
        return Started.read(folder) not in (mine, None)
    return False


def _has_succeeded(folder: Path) -> bool:
    before = Exit.read(folder)
    return before is not None and before.exit_code == 0 and (folder / BUNDLE_RESULT).is_file()


def drop(child: subprocess.Popen[bytes], attempt: Attempt) -> None:
    """End the command alone. The other start has this job's id and mark: what is sent to those would end it as well."""
    child.terminate()
    try:
        child.wait(attempt.grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def end(child: subprocess.Popen[bytes], attempt: Attempt) -> int:
    """End the command: ask the ranks to save, `grace_s` to do it, SIGKILL to all that is left here. Returns its exit code.

    What is left on other nodes ends with the job: the batch system sees to that.
    """
    if child.poll() is None:
        _ask_to_stop(child, attempt)
        try:
            child.wait(attempt.grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
    kill_marked(attempt.token)
    return child.wait()


def _ask_to_stop(child: subprocess.Popen[bytes], attempt: Attempt) -> None:
    if attempt.stop:
        with suppress(OSError, subprocess.TimeoutExpired):
            stop = [os.path.expandvars(word) for word in attempt.stop]
            if subprocess.run(stop, stdin=subprocess.DEVNULL, timeout=_STOP_S, check=False).returncode == 0:
                return
    child.terminate()


def supervise(folder: Path, token: str, batch_id: str, begin: Start = start) -> int:
    """Run one start of the attempt from `started.json` to `exit.json`; returns the exit code of the job."""
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    attempt = Attempt.read(folder)
    if attempt is None or attempt.token != token:
        _say(f"job {batch_id} was given up for another one and does nothing")
        return 0
    if (folder / CANCEL).exists():
        _say(f"job {batch_id} was cancelled before it began")
        return 0
    if _has_succeeded(folder):
        _say(f"job {batch_id} has succeeded before and does nothing")
        return 0
    for stale in (EXIT, ERROR):
        (folder / stale).unlink(missing_ok=True)
    mine = Started(token=token, batch_id=batch_id, host=socket.gethostname(), started_utc=utc_now())
    mine.write(folder)
    began_s = time.monotonic()
    try:
        child = begin(attempt, folder)
    except OSError as exc:
        _say(f"cannot start {attempt.command[0]}: {exc}")
        Exit(exit_code=127, reason="ended", wall_s=0.0, ended_utc=utc_now()).write(folder)
        return 127
    where = f"job {batch_id} on {socket.gethostname()}, supervisor {os.getpid()}"
    print(f"{ATTEMPT_LINE}{attempt.attempt} at {utc_now()}, {where}", file=sys.stderr, flush=True)
    reason = watch(child, attempt, folder, told_to_stop, mine)
    if reason is None:
        drop(child, attempt)
        _say(f"{where}: the job was started again elsewhere, this start has ended")
        return 0
    code = end(child, attempt)
    wall_s = round(time.monotonic() - began_s, 3)
    Exit(exit_code=code, reason=reason, wall_s=wall_s, ended_utc=utc_now()).write(folder)
    return code if 0 <= code < 256 else 1


def _say(text: str) -> None:
    print(f"filmloop: {utc_now()} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), sys.argv[2], os.environ.get(sys.argv[3], "")))
