"""The files of a sealed shard against its manifest: sizes and hashes, without decoding a frame. Imports no zarr."""

from __future__ import annotations

from pathlib import Path

from filmloop.core.errors import DataError, FilmloopError
from filmloop.core.fsio import is_lost, sha256_file, translate_os_error
from filmloop.staging.catalog import SealedShard
from filmloop.staging.layout import METADATA


class GroupFiles:
    """What the manifest says of each file of the group, and whether it is so."""

    def __init__(self, shard: SealedShard) -> None:
        self._shard = shard
        self._files = {file.path.partition("/")[2]: file for file in shard.manifest.files}

    def check_all(self, *, hashed: bool) -> None:
        """Compare every file with the manifest: Zarr's own metadata by hash, the others by hash or by size.

        Raises:
            DataError: a file differs; names it and the shard.
        """
        for name in self._files:
            self.check(name, hashed=hashed or Path(name).name == METADATA)

    def check(self, name: str, *, hashed: bool) -> None:
        """Compare one file, named relative to the group.

        Raises:
            DataError: it differs, or the manifest knows none of that name, or the disk has lost a part of it.
            TransientError: the disk refuses.
        """
        file = self._files.get(name)
        if file is None:
            raise self.damaged(name, "is not in the manifest")
        path = self._shard.group_path / name
        try:
            size_bytes = path.stat().st_size
        except OSError as exc:
            raise self._unreadable(name, exc) from exc
        if size_bytes != file.size_bytes:
            raise self.damaged(name, f"has {size_bytes} bytes instead of {file.size_bytes}")
        try:
            differs = hashed and sha256_file(path) != file.sha256
        except FilmloopError as exc:
            raise (self._unreadable(name, exc.__cause__) if isinstance(exc.__cause__, OSError) else exc) from exc
        if differs:
            raise self.damaged(name, "has another SHA-256 than it was sealed with")

    def _unreadable(self, name: str, exc: OSError) -> FilmloopError:
        """What is lost is damage; a disk that refuses may come to its senses."""
        if is_lost(exc):
            return self.damaged(name, f"cannot be read: {exc.strerror}")
        return translate_os_error(exc, self._shard.group_path / name)

    def damaged(self, name: str, what: str) -> DataError:
        """The error that says what is wrong with a file."""
        return DataError(
            f"Shard {self._shard.shard_id} is damaged: {self._shard.group_path.name}/{name} {what}.",
            hint="`filmloop shards verify` finds every damaged shard; ship this one again or remove it.",
            ids={"shard_id": self._shard.shard_id, "path": str(self._shard.manifest_path)},
        )
