"""Daemons of test rigs: children that die with their parent, found again by a mark or by their folder, ended by id."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.local.held import is_held

OWNER = "owner"
"""File in a rig's folder that its owner holds a lock on for as long as it lives."""
_PR_SET_PDEATHSIG = 1


def start(
    argv: Sequence[str], *, environ: Mapping[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a daemon in a process group of its own; the kernel ends it when the thread that called this ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environ),
            cwd=cwd,
            preexec_fn=die_with_parent,
            process_group=0,
        )


def marked(mark: str) -> Iterator[tuple[int, list[bytes]]]:
    """Id and environment of every living process that has `NAME=value` in its environment, this one excepted."""
    wanted = mark.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            environ = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            if wanted in environ and state(int(entry)) not in "ZX":
                yield int(entry), environ


def below(folder: Path) -> Iterator[int]:
    """Id of every living process that works in `folder`, this one excepted; a new title may hide its environment."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                if Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(folder) and state(int(entry)) not in "ZX":
                    yield int(entry)


def kill(find: Callable[[], Iterable[int]]) -> None:
    """SIGKILL whatever `find` finds until it has found nothing twice."""
    looks = 0
    while looks < 2:
        found = list(find())
        looks = 0 if found else looks + 1
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def sweep(prefix: str, end: Callable[[Path], None]) -> None:
    """Let `end` end what the rigs of killed owners left, and remove their folders, whose names begin with `prefix`."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (folder / OWNER).exists() and not is_held(folder / OWNER):
            end(folder)
            shutil.rmtree(folder, ignore_errors=True)


def kill_marked(mark: str) -> None:
    """SIGKILL every process with `mark` in its environment, and those that they start meanwhile."""
    kill(lambda: [pid for pid, _ in marked(mark)])


def parent(pid: int) -> int:
    """Id of the parent; 0 if the process is gone."""
    return int(_stat(pid)[1]) if _stat(pid) else 0


def state(pid: int) -> str:
    """State as proc(5) writes it; X if the process is gone."""
    return _stat(pid)[0] if _stat(pid) else "X"


def name(pid: int) -> str:
    """Name of its program; '' if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def words(pid: int) -> str:
    """Its command line; '' if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
