"""Gives back the memory in which the kernel keeps files that were written and that nobody is to read soon.

An edge at full rate writes 85 MB/s for good. Left alone, that fills all memory that nothing else wants, pushes out what
other programs had read, and takes a new page for each one written: on a virtual machine a fifth of a core, for its host
has to find every page first.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class WrittenFiles:
    """Files that one writer made durable, the newest of which stay in memory.

    Args:
        most_bytes: How much of them stays.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._files: deque[tuple[Path, int]] = deque()

    def add(self, files: Iterable[tuple[Path, int]]) -> None:
        """Take paths and sizes of new ones, and give back the oldest beyond `most_bytes`; never raises for a file."""
        for path, size_bytes in files:
            self._files.append((path, size_bytes))
            self._bytes += size_bytes
        while self._bytes > self._most_bytes:
            path, size_bytes = self._files.popleft()
            self._bytes -= size_bytes
            with suppress(OSError):  # retention was quicker
                _give_back(path)


def _give_back(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
