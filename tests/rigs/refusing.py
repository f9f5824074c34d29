"""Folders that refuse: what their modes forbid holds for root, too, as which tests run in a container."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """In this thread and those that it starts meanwhile root may do no more than the owner of a file (capset(2))."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Two words each of effective, permitted and inheritable; only what is effective changes.
    before = (ctypes.c_uint32 * 6)()
    assert _libc.capget(header, before) == 0
    bound = (ctypes.c_uint32 * 6)(before[0] & ~_OVERRIDES, *before[1:])
    assert _libc.capset(header, bound) == 0
    try:
        yield
    finally:
        assert _libc.capset(header, before) == 0


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Nobody may look into `folder`."""
    mode = folder.stat().st_mode
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(mode)
