"""Runs one attempt of a job and outlives its caller: `python -m filmloop.adapters.local.supervise RUN_FOLDER`.

Started by the launcher, which hands down the lock `alive`. Goes to the background, runs the command of `launch.json`,
ends it at the deadline, on request or when told to stop itself, and writes `exit.json`. Imports no torch: it is there
within 0.1 s.

torchrun puts every rank into a session of its own, so killing a process group misses them. Every process of an attempt
carries the attempt's token in its environment instead, and is found by it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from filmloop.adapters.local.runfolder import CANCEL, LOG, Exit, Launch, Reason
from filmloop.core.clock import utc_now

TOKEN = "FILMLOOP_LAUNCH"
"""Environment variable that marks the processes of an attempt."""

_LOOK_S = 0.1
_PR_SET_PDEATHSIG = 1
_KILL_PATIENCE_S = 30.0
_EMPTY_LOOKS = 3


def marked_processes(token: str) -> list[int]:
    """Ids of the living processes that carry `token`, this one excepted."""
    mark = f"{TOKEN}={token}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path("/proc", entry, "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if mark in environ.split(b"\0"):
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


def start(launch: Launch, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own; it dies with this process."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # One machine: ranks talk over loopback, whatever its host name resolves to.
    environ = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "PYTHONUNBUFFERED": "1"}
    environ |= {"OMP_NUM_THREADS": str(launch.threads), TOKEN: launch.token}
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            process_group=0,
            preexec_fn=die_with_parent,
        )


def watch(child: subprocess.Popen[bytes], launch: Launch, folder: Path, told_to_stop: list[int]) -> Reason:
    """Wait until the command has ended, or has to."""
    end_s = time.monotonic() + launch.deadline_s
    pidfd = os.pidfd_open(child.pid)
    try:
        while not select.select([pidfd], [], [], _LOOK_S)[0]:
            if (folder / CANCEL).exists():
                return "cancelled"
            if told_to_stop:
                return "terminated"
            if time.monotonic() > end_s:
                return "deadline"
    finally:
        os.close(pidfd)
    # A machine that goes down tells everybody at once: the command may be gone before this loop has looked.
    return "terminated" if told_to_stop else "ended"


def end(child: subprocess.Popen[bytes], launch: Launch) -> int:
    """End the command: SIGTERM, `grace_s` to write a checkpoint, SIGKILL to all that is left. Returns its exit code.

    SIGTERM goes to the command alone: torchrun passes it on to its ranks, which would get it twice otherwise.
    """
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(launch.grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
    kill_marked(launch.token)
    return child.wait()


def supervise(folder: Path) -> None:
    """Run one attempt from start to `exit.json`."""
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    launch = Launch.read(folder)
    began_s = time.monotonic()
    try:
        child = start(launch, folder)
    except OSError as exc:
        print(f"filmloop: cannot start {launch.command[0]}: {exc}", file=sys.stderr, flush=True)
        Exit(exit_code=127, reason="ended", wall_s=0.0, ended_utc=utc_now()).write(folder)
        return
    print(
        f"filmloop: {utc_now()} attempt {launch.attempt}, supervisor {os.getpid()}, command {child.pid}",
        file=sys.stderr,
        flush=True,
    )
    reason = watch(child, launch, folder, told_to_stop)
    code = end(child, launch)
    wall_s = round(time.monotonic() - began_s, 3)
    Exit(exit_code=code, reason=reason, wall_s=wall_s, ended_utc=utc_now()).write(folder)


def main(folder: Path) -> None:
    """Go to the background, so that the starter has no child to wait for, and supervise."""
    if os.fork():
        os._exit(0)
    os.setsid()
    supervise(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
