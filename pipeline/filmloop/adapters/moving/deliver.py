"""One file from one side to the other, whole and proven: copy beside, hash what arrived, fsync, rename."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from filmloop.core.errors import DataError, TransientError
from filmloop.core.fsio import disk_errors, fsync_dir, fsync_file, sha256_file
from filmloop.ports.mover import MoveItem

INCOMING = ".incoming"
"""Folder below the root of the receiving side that holds what is not verified yet."""

_BLOCK_BYTES = 8 << 20
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


def below(root: Path, relative: str) -> Path:
    """The place `relative` inside `root`.

    Raises:
        DataError: the path is empty, absolute, climbs out with `..`, or lies in the folder for unverified files.
    """
    parts = PurePosixPath(relative).parts
    if not parts or parts[0] in ("/", "//", INCOMING) or ".." in parts or "\0" in relative:
        raise DataError(
            f"The path {relative!r} does not stay inside the folder that the mover serves.",
            hint=f"Paths of a move are relative, without '..', and outside of {INCOMING}/.",
            ids={"path": relative},
        )
    return root.joinpath(*parts)


def check_source(item: MoveItem, source: Path) -> None:
    """Look at name and size alone, which costs no reading.

    Raises:
        DataError: absent, no regular file, or of another size than its item says.
    """
    with disk_errors(source):
        size_bytes = source.stat().st_size
    if not source.is_file():
        raise DataError(f"{source} is not a file.", hint="Move the files of a folder one by one.")
    if size_bytes != item.size_bytes:
        raise _changed(source, f"it has {size_bytes} bytes, its manifest says {item.size_bytes}")


def check_content(item: MoveItem, source: Path) -> None:
    """Read all of it.

    Raises:
        DataError: absent, no regular file, or not what its item says.
    """
    check_source(item, source)
    if sha256_file(source) != item.sha256:
        raise _changed(source, "its SHA-256 differs from the one in its manifest")


def is_delivered(item: MoveItem, target: Path) -> bool:
    """Whether the target already is what the item says, by size and hash."""
    return target.is_file() and target.stat().st_size == item.size_bytes and sha256_file(target) == item.sha256


def deliver(item: MoveItem, source: Path, target: Path, incoming: Path, *, keep_on: Callable[[], None]) -> None:
    """Copy `source` to `incoming`, verify it there, and give it its name at `target`.

    The hash is taken over the bytes read back at the receiver. When it differs, the source is hashed as well: a
    changed source is the data's fault and final, anything else is the way's fault and tried again.

    Args:
        item: Size and hash that the file must have.
        source: Where it is.
        target: Where it goes; a file that is there is replaced.
        incoming: Scratch name on the file system of `target`.
        keep_on: Called between blocks; raises to stop the copy.

    Raises:
        DataError: the source is absent or is not what the item says.
        TransientError: it arrived damaged three times, or the disk refuses.
    """
    make_dirs(target.parent)
    for attempt in range(1, _ATTEMPTS + 1):
        check_source(item, source)
        with disk_errors(target):
            copy_bytes(source, incoming, keep_on=keep_on)
            fsync_file(incoming)
        if sha256_file(incoming) == item.sha256:
            with disk_errors(target):
                os.replace(incoming, target)
            return
        check_content(item, source)
        _log.warning("%s arrived damaged (attempt %d of %d)", target, attempt, _ATTEMPTS)
    raise TransientError(
        f"{target} arrived damaged {_ATTEMPTS} times; the source is good.",
        hint="The receiving disk or memory is suspect; `filmloop site check` tests the disk.",
        ids={"path": str(target)},
    )


def settle(moves: Sequence[tuple[Path, Path]]) -> None:
    """Give verified files their names, in this order, power cut or not; one that has its name already is left alone.

    Args:
        moves: For each file where it lies and where it goes, on one file system.

    Raises:
        TransientError: the disk refuses.
    """
    unsynced: Path | None = None
    for arrived, target in moves:
        if unsynced is not None and unsynced != target.parent:
            fsync_dir(unsynced)
        make_dirs(target.parent)
        with disk_errors(target), suppress(FileNotFoundError):
            fsync_file(arrived)
            os.replace(arrived, target)
        unsynced = target.parent
    if unsynced is not None:
        fsync_dir(unsynced)


def copy_bytes(source: Path, target: Path, *, keep_on: Callable[[], None]) -> None:
    """Copy inside the kernel, block by block. Never a hard link: the two sides must not share an inode."""
    with source.open("rb", buffering=0) as src, target.open("wb", buffering=0) as dst:
        while os.sendfile(dst.fileno(), src.fileno(), None, _BLOCK_BYTES):
            keep_on()


def make_dirs(folder: Path) -> None:
    """Create `folder` and its parents so that their names survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        with disk_errors(path):
            path.mkdir(exist_ok=True)
            fsync_dir(path.parent)


def _changed(source: Path, how: str) -> DataError:
    return DataError(
        f"{source} changed since it was sealed: {how}.",
        hint="`filmloop shards verify` names every damaged file; seal or fetch it again, then run the cycle again.",
        ids={"path": str(source)},
    )
