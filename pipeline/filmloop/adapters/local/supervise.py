"""Runs one attempt of a job and outlives its caller: `python -m filmloop.adapters.local.supervise RUN_FOLDER`.

Started by the launcher, which hands down the lock `alive`. Goes to the background, runs the command of `launch.json`,
ends it at the deadline, on request or when told to stop itself, and writes `exit.json`. Imports no torch: it is there
within 0.1 s.

A warm worker (`adapters.local.worker`) forks this supervisor instead, and it forks the ranks: `supervise` is the same.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filmloop.adapters.local.mark import TOKEN, kill_marked
from filmloop.adapters.local.runfolder import ATTEMPT_LINE, CANCEL, LOG, Exit, Launch, Reason
from filmloop.core.clock import utc_now
from filmloop.core.forking import die_with

_LOOK_S = 0.1


class Child(Protocol):
    """A child that is watched: `subprocess.Popen`, or `core.forking.Forked`."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


Start = Callable[[Launch, Path], Child]
"""Starts the command of an attempt, marked with its token."""


def environ_of(launch: Launch) -> dict[str, str]:
    """The environment of the command: the caller's, and what the attempt adds."""
    # One machine: ranks talk over loopback, whatever its host name resolves to.
    environ = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "PYTHONUNBUFFERED": "1"}
    return environ | {"OMP_NUM_THREADS": str(launch.threads), TOKEN: launch.token}


def start(launch: Launch, folder: Path) -> Child:
    """Start the command in a process group of its own; it dies with this process."""
    parent = os.getpid()
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ_of(launch),
            process_group=0,
            preexec_fn=lambda: die_with(parent),
        )


def watch(child: Child, launch: Launch, folder: Path, told_to_stop: list[int]) -> Reason:
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


def end(child: Child, launch: Launch) -> int:
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


def supervise(folder: Path, begin: Start = start, *, ready: Callable[[], None] = lambda: None) -> None:
    """Run one attempt from start to `exit.json`, unless another supervisor has claimed it.

    `ready` is called when the attempt is this process's and SIGTERM is heard.
    """
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    launch = Launch.read(folder)
    if not launch.claim(folder):
        return
    ready()
    began_s = time.monotonic()
    try:
        child = begin(launch, folder)
    except OSError as exc:
        print(f"filmloop: cannot start {launch.command[0]}: {exc}", file=sys.stderr, flush=True)
        Exit(exit_code=127, reason="ended", wall_s=0.0, ended_utc=utc_now()).write(folder)
        return
    print(
        f"{ATTEMPT_LINE}{launch.attempt} at {utc_now()}, supervisor {os.getpid()}, command {child.pid}",
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
