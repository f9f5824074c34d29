from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.core import memory as module
from filmloop.core.memory import Memory, memory

GB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 GB of memory, 12 of them free, as its files say it."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\n")
    (tmp_path / "cgroup").write_text("1:name=systemd:/x\n0::/system.slice/edge.service\n")
    groups = tmp_path / "groups"
    (groups / "system.slice/edge.service").mkdir(parents=True)
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(module, "_CGROUPS", groups)
    return groups


def test_without_limits_memory_is_the_machines(machine: Path) -> None:
    assert memory() == Memory(total_bytes=16 * GB, free_bytes=12 * GB)
    (machine / "system.slice/edge.service/memory.max").write_text("max\n")
    assert memory().total_bytes == 16 * GB


def test_a_limit_of_a_control_group_or_of_one_around_it_counts(machine: Path) -> None:
    (machine / "system.slice/memory.max").write_text(f"{4 * GB}\n")
    (machine / "system.slice/memory.current").write_text(f"{GB}\n")
    assert memory() == Memory(total_bytes=4 * GB, free_bytes=3 * GB)
    (machine / "system.slice/edge.service/memory.max").write_text(f"{2 * GB}\n")
    assert memory() == Memory(total_bytes=2 * GB, free_bytes=2 * GB)
