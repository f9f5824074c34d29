"""`filmloop site check` finds a ring that this machine has no memory for."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.bootstrap import Site, open_site
from filmloop.checks import this_machine
from filmloop.core.memory import Memory, memory


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path / "home"))
    path = tmp_path / "site.toml"
    path.write_text("")
    return path


def with_ring(file: Path, ring_mb: float, *sets: str) -> Site:
    return open_site(file, sets=[f"edge.ring_mb={ring_mb}", *sets])


def test_a_ring_that_fits_is_told_in_frames(file: Path) -> None:
    found = this_machine.ring(with_ring(file, 8))
    assert (found.state, found.detail) == ("ok", "3,906 frames of 16x128 in 11 MB of memory")


@pytest.mark.parametrize("ring_mb", [1e6, 1e12])
def test_a_ring_of_more_memory_than_there_is_fails_with_the_key(file: Path, ring_mb: float) -> None:
    found = this_machine.ring(with_ring(file, ring_mb))
    assert found.state == "fail"
    assert "MB wanted" in found.detail
    assert "this machine has" in found.detail
    assert "[edge] ring_mb" in found.hint


def test_a_ring_for_huge_frames_is_as_large_as_a_batch_of_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Memory(total_bytes=4_000_000_000, free_bytes=3_000_000_000)
    monkeypatch.setattr(this_machine, "memory", lambda: small)
    found = this_machine.ring(with_ring(file, 1, "frame.channels=4096", "frame.energy_bins=4096"))
    assert found.state == "fail"
    assert "512 frames of 4096x4096" in found.detail


def test_a_ring_of_more_memory_than_is_free_is_a_warning(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Memory(total_bytes=4_000_000_000, free_bytes=50_000_000)
    monkeypatch.setattr(this_machine, "memory", lambda: small)
    assert this_machine.ring(with_ring(file, 128)).state == "warn"


def test_memory_is_what_the_system_says() -> None:
    found = memory()
    assert 0 < found.free_bytes <= found.total_bytes < 2**50
