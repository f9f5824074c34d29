"""Which shards there are. Looks at names and manifests only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from filmloop.core.documents import ShardManifest, ShardRef
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors
from filmloop.staging.layout import MANIFEST_SUFFIX, ShardName, shard_files, streams

_log = logging.getLogger(__name__)
_warned: set[Path] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedShard:
    """A committed shard: its manifest, and where the two lie."""

    manifest: ShardManifest
    manifest_path: Path
    group_path: Path

    @property
    def shard_id(self) -> str:
        """`<stream>/run000001/00000012`."""
        return self.manifest.shard_id

    def ref(self) -> ShardRef:
        """How a job on this machine names it."""
        return ShardRef(
            shard_id=self.shard_id,
            manifest_path=str(self.manifest_path),
            manifest_digest=self.manifest.digest(),
            frames=self.manifest.frames,
        )


def read_shard(manifest_path: Path) -> SealedShard:
    """The shard of one manifest; its frames are not looked at.

    Raises:
        DataError: the manifest is damaged or contradicts its name, or its group is not there.
        TransientError: the disk refuses.
    """
    manifest = ShardManifest.read(manifest_path)
    ids = {"shard_id": manifest.shard_id, "path": str(manifest_path)}
    # A listing shows the name, a job believes the manifest: they must say the same.
    name = ShardName(stream=manifest.stream, run_number=manifest.run_number, seq=manifest.seq)
    if manifest.shard_id != name.shard_id or manifest_path.name != name.manifest_path(Path()).name:
        raise DataError(
            f"{manifest_path} says that it is shard {manifest.shard_id}, number {manifest.seq} of {manifest.stream}.",
            hint="It was edited or renamed by hand: `filmloop shards verify`.",
            ids=ids,
        )
    group_path = manifest_path.with_name(name.group_path(Path()).name)
    with disk_errors(group_path):
        is_there = manifest.group == group_path.name and group_path.is_dir()
    if not is_there:
        raise DataError(
            f"Shard {manifest.shard_id} has a manifest but no group {manifest.group!r} beside it.",
            hint="Bring the group back from a copy, or remove the manifest: `filmloop shards verify`.",
            ids=ids,
        )
    return SealedShard(manifest=manifest, manifest_path=manifest_path, group_path=group_path)


def sealed_shards(stage: Path, stream: str | None = None) -> list[SealedShard]:
    """All sealed shards, or those of one stream, by (stream, seq). Damaged ones are left out with a warning.

    Raises:
        TransientError: the disk refuses.
    """
    return [shard for path in _manifests(stage, stream) if (shard := _read_or_warn(path)) is not None]


def last_sealed(stage: Path, stream: str) -> SealedShard | None:
    """The newest readable shard of `stream`, the one with the highest number; None if there is none.

    Raises:
        TransientError: the disk refuses.
    """
    for path in reversed(_manifests(stage, stream)):
        if (shard := _read_or_warn(path)) is not None:
            return shard
    return None


def damaged(stage: Path, stream: str | None = None) -> list[Path]:
    """Manifests that `sealed_shards` leaves out. `filmloop shards verify` looks into the groups as well."""
    return [path for path in _manifests(stage, stream) if _problem(path) is not None]


def _manifests(stage: Path, stream: str | None) -> list[Path]:
    names = streams(stage) if stream is None else [stream]
    return [path for name in names for path in shard_files(stage, name, MANIFEST_SUFFIX)]


def _problem(path: Path) -> DataError | None:
    try:
        read_shard(path)
    except DataError as exc:
        # Retention may take a shard between the listing and the look.
        return exc if _exists(path) else None
    return None


def _read_or_warn(path: Path) -> SealedShard | None:
    try:
        return read_shard(path)
    except DataError as exc:
        if _exists(path) and path not in _warned:
            _warned.add(path)
            _log.warning("shard left out: %s %s", exc.message, exc.hint)
        return None


def _exists(path: Path) -> bool:
    with disk_errors(path):
        return path.exists()
