"""What /proc tells about processes and ports on this machine (Linux)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


def start_ticks(pid: int) -> int | None:
    """When `pid` was started, in clock ticks since boot; None if it does not run (a zombie does not).

    Together with the number it names one process for ever: numbers are used again, start times with them are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end: state is field 3, the start time field 22.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def group_runs(group: int) -> bool:
    """Whether any process of this process group runs."""
    return bool(members_of(group))


def members_of(group: int) -> list[int]:
    """Ids of the processes of this process group that run."""
    return [int(process.name) for process in _members(group)]


def group_listens(group: int, port: int) -> bool:
    """Whether a process of this process group is the one that listens on `port`."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    return bool(sockets) and any(_holds(process, sockets) for process in _members(group))


def _members(group: int) -> Iterator[Path]:
    """The /proc entries of the processes of a group that run."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    yield entry


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; connections of a former one that are still closing do not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def port_holder(port: int) -> str:
    """Who listens on `port`: `process 4242 (python -m http.server)`, or '' where /proc does not tell."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and sockets and _holds(entry, sockets):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {entry.name} ({words[:120]})"
    return ""


def _listening(port: int) -> list[str]:
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.append(fields[9])
    return inodes


def _holds(process: Path, sockets: set[str]) -> bool:
    with suppress(OSError):
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(fd) in sockets:
                    return True
    return False
