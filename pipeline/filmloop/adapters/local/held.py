"""A lock that says whether a process lives: handed down by its starter, dropped by the kernel when the last one dies.

Open file description locks (fcntl(2), Linux 3.15) outlive fork and exec together with their descriptor, so there is no
moment between start and lock in which a living process looks dead; no pid is written down, so none can be reused; and
asking does not take the lock, so an asker never stands in the way of a starter.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filmloop.core.fsio import disk_errors, translate_lock_error

_WHOLE_FILE = (os.SEEK_SET, 0, 0, 0)
_FLOCK = "hhqqi"
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""


@contextmanager
def hold(path: Path) -> Iterator[int | None]:
    """Take the lock for the block; yields its descriptor to hand down, or None if somebody else holds it.

    Raises:
        ConfigError: the file system has no locks.
        TransientError: the disk refuses.
    """
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, *_WHOLE_FILE))
    except (BlockingIOError, PermissionError):
        os.close(fd)
        yield None
        return
    except OSError as exc:
        os.close(fd)
        raise translate_lock_error(exc, path) from exc
    try:
        yield fd
    finally:
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock on `path`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, *_WHOLE_FILE))
    finally:
        os.close(fd)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
