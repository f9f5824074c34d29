"""What this site has placed on the cluster, by path: a collection tells sizes, but no hashes.

Believed only together with a look at the cluster, and no more once `discard` was called. Bytes that went bad over there
later are found by the trainer, which hashes all it reads; the cycle then discards them, and they are sent anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from filmloop.adapters.globus.transfer.side import overlap
from filmloop.core.documents import Document, Sha256
from filmloop.core.fsio import try_lock
from filmloop.core.retry import wait_until
from filmloop.ports.mover import MoveItem

_LOCK_S = 10.0


class _File(Document):
    size_bytes: int
    sha256: Sha256


class _Files(Document):
    schema_version: Literal[1] = 1
    files: dict[str, _File] = Field(default_factory=dict)


class Placed:
    """The files that audited moves have placed; survives restarts, shared by processes."""

    def __init__(self, journal: Path) -> None:
        self._path, self._lock = journal / ".placed.json", journal / ".placed.lock"

    def among(self, items: Iterable[MoveItem]) -> set[str]:
        """Target paths of those items that moves have placed."""
        files = self._read().files
        return {
            item.target_path
            for item in items
            if files.get(item.target_path) == _File(size_bytes=item.size_bytes, sha256=item.sha256)
        }

    def below(self, folder: str) -> list[str]:
        """Paths of the files that moves have placed in `folder`."""
        return sorted(path for path in self._read().files if PurePosixPath(path).is_relative_to(folder))

    def add(self, items: Iterable[MoveItem]) -> None:
        """These are in place."""
        new = {item.target_path: _File(size_bytes=item.size_bytes, sha256=item.sha256) for item in items}
        self._change(lambda files: files | new)

    def forget(self, paths: Iterable[str]) -> None:
        """What is at and below these paths is nobody's word any more."""
        gone = list(paths)
        self._change(
            lambda files: {path: file for path, file in files.items() if not any(overlap(path, one) for one in gone)}
        )

    def _read(self) -> _Files:
        return _Files.read(self._path) if self._path.exists() else _Files()

    def _change(self, change: Callable[[dict[str, _File]], dict[str, _File]]) -> None:
        def changed() -> bool | None:
            with try_lock(self._lock) as free:
                if not free:
                    return None
                before = self._read()
                after = change(before.files)
                if after != before.files:
                    _Files(files=after).write(self._path)
                return True

        wait_until(changed, deadline_s=_LOCK_S, what="The list of placed files", first_s=0.005, cap_s=0.05)
