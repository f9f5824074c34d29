"""Durable files: write beside, fsync, rename, fsync the folder. After a crash a file is whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filmloop.core.errors import ConfigError, DataError, FilmloopError, TransientError

PART_SUFFIX = ".part"
_HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's refusals about `path` into errors with a hint.

    Raises:
        TransientError: no space, quota, read-only or input/output error.
        DataError: the path is absent or of the wrong kind.
    """
    try:
        yield
    except OSError as exc:
        raise translate_os_error(exc, path) from exc


def translate_os_error(exc: OSError, path: Path) -> FilmloopError:
    """The error of our own tree that says what `exc` means for `path`."""
    ids = {"path": str(path)}
    # HDF5 puts a paragraph of its own where the system's words should be.
    why = os.strerror(exc.errno) if exc.errno else exc
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransientError(
            f"No space left to write {path}.",
            hint="Free space or move the state with FILMLOOP_HOME; nothing sealed was touched. "
            "`filmloop shards list` shows what may go.",
            ids=ids,
        )
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return TransientError(
            f"Not allowed to use {path}: {why}.",
            hint="Check owner and mode of the folder, or point FILMLOOP_HOME at one that you may read and write.",
            ids=ids,
        )
    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return DataError(f"{path}: {why}.", hint="Check the path.", ids=ids)
    return TransientError(f"{path}: {why}.", hint="`filmloop site check` tests the disk.", ids=ids)


def is_lost(exc: OSError) -> bool:
    """Whether bytes are gone for good: nothing is there, or a bad sector. Any other refusal may pass."""
    return exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO)


def translate_lock_error(exc: OSError, path: Path) -> FilmloopError:
    """The error of our own tree for a lock on `path` that could not even be asked for.

    Lustre mounted without `flock` and some FUSE file systems know no locks (ENOSYS, ENOTSUP), NFS without a lock
    daemon has none (ENOLCK). Waiting does not change that.
    """
    if exc.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
        return ConfigError(
            f"The file system of {path} has no file locks: {exc.strerror}.",
            hint="Point FILMLOOP_HOME at a folder on a local disk; without locks two cycles would run at once.",
            ids={"path": str(path)},
        )
    return translate_os_error(exc, path)


def fsync_dir(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` durable, bottom up."""
    for base, _dirs, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_file(Path(base, name))
        fsync_dir(Path(base))


def atomic_write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        TransientError: the disk refuses; `path` is as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with the guarantees of `atomic_write_bytes`."""
    atomic_write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def create_json(path: Path, value: Any) -> bool:
    """Write `value` to `path` unless something is there already; says whether this call was the one that wrote it.

    Of several processes that try at once exactly one gets True, and none ever sees a part.

    Raises:
        TransientError: the disk refuses.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PART_SUFFIX}")
    atomic_write_json(part, value)
    with disk_errors(path):
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
        fsync_dir(path.parent)
    return True


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: absent, or not JSON in UTF-8.
        TransientError: the disk refuses.
    """
    with disk_errors(path):
        data = path.read_bytes()
    try:
        return json.loads(data.decode())
    except ValueError as exc:
        raise DataError(f"{path} is not valid JSON: {exc}", ids={"path": str(path)}) from exc


def publish_dir(part: Path, final: Path) -> None:
    """Make a finished folder durable, then give it its final name in one step.

    A `final` that is already there is replaced: publishing the same thing twice is not an error.
    """
    with disk_errors(final):
        fsync_tree(part)
        if final.exists():
            old = final.with_name(f"{final.name}.old{PART_SUFFIX}")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
            os.replace(part, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, final)
        fsync_dir(final.parent)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file at `path`, read in blocks.

    Raises:
        DataError: the file is absent.
    """
    digest = hashlib.sha256()
    with disk_errors(path), path.open("rb") as src:
        while block := src.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """One byte string for one JSON value: sorted keys, no spaces. Digests are taken over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on `path` for the block; yields whether it was free.

    The kernel drops the lock when the process ends, however it ends.

    Raises:
        ConfigError: the file system has no locks.
        TransientError: the disk refuses.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as exc:
            raise translate_lock_error(exc, path) from exc
        with suppress(OSError):  # the pid is for people: a full disk must not cost the lock
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        yield True
    finally:
        os.close(fd)
