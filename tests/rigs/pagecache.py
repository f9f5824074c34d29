"""What the kernel holds of a file."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest


def on_disk(folder: Path) -> Path:
    """`folder`, if what is written there can leave the memory."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
    if kind.strip() in ("tmpfs", "ramfs"):
        pytest.skip(f"{folder} lies in memory ({kind.strip()}): set TMPDIR to a folder on a disk")
    return folder


def share_in_memory(path: Path) -> float:
    """Share of a file's pages that the kernel holds, by mincore(2)."""
    libc, pages = ctypes.CDLL(None, use_errno=True), -(-path.stat().st_size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        bytes_N = np.frombuffer(mapped, np.uint8)
        resident = (ctypes.c_ubyte * pages)()
        code = libc.mincore(ctypes.c_void_p(bytes_N.ctypes.data), ctypes.c_size_t(len(bytes_N)), resident)
        assert code == 0, os.strerror(ctypes.get_errno())
        del bytes_N
    return sum(page & 1 for page in resident) / pages
