"""How much memory this machine has for a process, and how much of it is free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory, shared or not: of the machine, or what a control group leaves of it."""

    total_bytes: int
    free_bytes: int


def memory() -> Memory:
    """What there is now; a limit of a control group (a container, a systemd unit) counts."""
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    total, free = (1024 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    for group in _groups():
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None:
            total, free = min(total, limit), min(free, max(limit - (used or 0), 0))
    return Memory(total_bytes=total, free_bytes=free)


def _groups() -> list[Path]:
    """The control group of this process and those around it (version 2)."""
    try:
        own = next((line[3:] for line in _CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        return []
    folder = _CGROUPS / own.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUPS))]


def _number(file: Path) -> int | None:
    """What is in a file of a control group; None if it sets no limit, or there is no such file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
