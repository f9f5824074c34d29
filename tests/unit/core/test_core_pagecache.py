"""What the kernel keeps of files that were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from filmloop.core.fsio import fsync_file
from filmloop.core.pagecache import WrittenFiles
from rigs.pagecache import on_disk, share_in_memory

_MB = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return on_disk(tmp_path)


def _written(folder: Path, name: str) -> tuple[Path, int]:
    path = folder / name
    path.write_bytes(os.urandom(_MB))
    fsync_file(path)
    return path, _MB


def test_only_the_newest_files_stay_in_memory(disk: Path) -> None:
    files = [_written(disk, str(number)) for number in range(4)]
    assert [share_in_memory(path) for path, _ in files] == [1.0] * 4
    kept = WrittenFiles(2 * _MB)
    kept.add(files[:3])
    kept.add(files[3:])
    assert [share_in_memory(path) for path, _ in files] == [0.0, 0.0, 1.0, 1.0]


def test_what_was_given_back_is_still_there(disk: Path) -> None:
    path, size_bytes = _written(disk, "one")
    before = path.read_bytes()
    WrittenFiles(0).add([(path, size_bytes)])
    assert share_in_memory(path) == 0.0
    assert path.read_bytes() == before


def test_a_file_that_was_removed_meanwhile_is_no_trouble(disk: Path) -> None:
    files = [_written(disk, str(number)) for number in range(3)]
    kept = WrittenFiles(_MB)
    kept.add(files[:1])
    files[0][0].unlink()
    kept.add(files[1:])
    assert [share_in_memory(path) for path, _ in files[1:]] == [0.0, 1.0]
