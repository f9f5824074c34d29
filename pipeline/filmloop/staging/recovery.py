"""What a crash leaves behind, and how the edge cleans it up before it opens a shard."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from filmloop.core.documents import FileDigest, ShardManifest
from filmloop.core.errors import DataError, TransientError
from filmloop.core.fsio import PART_SUFFIX, disk_errors, fsync_dir, is_lost
from filmloop.staging.layout import (
    EXPIRED_SUFFIX,
    GROUP_SUFFIX,
    MANIFEST_SUFFIX,
    QUARANTINE,
    name_of,
    shard_files,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was found and done.

    Attributes:
        finished: Manifests whose commit a crash had cut between its two renames; their shards are sealed now.
        expired: Shard ids whose removal a crash had cut off; they are gone now.
        removed: Parts of shards that were never sealed.
        quarantined: Where groups without a manifest lie now; nothing reads them, a person may.
    """

    finished: tuple[Path, ...] = ()
    expired: tuple[str, ...] = ()
    removed: tuple[Path, ...] = ()
    quarantined: tuple[Path, ...] = ()


def recover(stage: Path, stream: str) -> Recovery:
    """Bring the folder of `stream` back to sealed shards alone. Call it while no writer is at work on the stream.

    Raises:
        TransientError: the disk refuses; call again.
    """
    with disk_errors(stage / stream):
        found = Recovery(
            expired=tuple(finish_expiry(path) for path in shard_files(stage, stream, EXPIRED_SUFFIX)),
            finished=tuple(_finish_commits(stage, stream)),
            removed=tuple(_remove_parts(stage, stream)),
            quarantined=tuple(_quarantine_orphans(stage, stream)),
        )
    if found != Recovery():
        _log.warning(
            "stream %s after a crash: %d shards sealed that were nearly so, %d removals finished, %d parts removed, "
            "%d groups without a manifest moved to %s",
            stream,
            len(found.finished),
            len(found.expired),
            len(found.removed),
            len(found.quarantined),
            stage / QUARANTINE,
        )
    return found


def finish_expiry(expired: Path) -> str:
    """Remove the group of a manifest that retention took back, and last that manifest; returns the shard id."""
    manifest_path = expired.with_name(expired.name.removesuffix(EXPIRED_SUFFIX))
    group_path = manifest_path.with_name(manifest_path.name.removesuffix(MANIFEST_SUFFIX) + GROUP_SUFFIX)
    shutil.rmtree(group_path, ignore_errors=True)
    if not group_path.exists():
        expired.unlink(missing_ok=True)
    return name_of(expired).shard_id


def _finish_commits(stage: Path, stream: str) -> list[Path]:
    """Second renames that a crash prevented: the group has its name, the manifest is durable and fits it."""
    finished = []
    for manifest_part in shard_files(stage, stream, MANIFEST_SUFFIX + PART_SUFFIX):
        manifest_path = manifest_part.with_name(manifest_part.name.removesuffix(PART_SUFFIX))
        if not manifest_path.exists() and _fits(manifest_part):
            os.replace(manifest_part, manifest_path)
            fsync_dir(manifest_path.parent)
            finished.append(manifest_path)
    return finished


def _fits(manifest_part: Path) -> bool:
    folder = manifest_part.parent
    try:
        with disk_errors(folder):
            manifest = ShardManifest.read(manifest_part)
            return all(FileDigest.of(folder / file.path, folder) == file for file in manifest.files)
    except DataError:
        return False
    except TransientError as exc:
        # A group on a bad sector is for a person to look at; one that cannot be read now may be whole.
        if isinstance(exc.__cause__, OSError) and is_lost(exc.__cause__):
            return False
        raise


def _remove_parts(stage: Path, stream: str) -> list[Path]:
    parts = list(shard_files(stage, stream, PART_SUFFIX))
    for path in parts:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return parts


def _quarantine_orphans(stage: Path, stream: str) -> list[Path]:
    moved = []
    for group_path in shard_files(stage, stream, GROUP_SUFFIX):
        name = name_of(group_path)
        if name.manifest_path(stage).exists():
            continue
        (stage / QUARANTINE).mkdir(exist_ok=True)
        stem, tries = f"{name.shard_id.replace('/', '-')}{GROUP_SUFFIX}", 0
        target = stage / QUARANTINE / f"{stem}.orphan"
        while target.exists():
            tries += 1
            target = stage / QUARANTINE / f"{stem}.{tries}.orphan"
        os.replace(group_path, target)
        fsync_dir(target.parent)
        fsync_dir(group_path.parent)
        moved.append(target)
    return moved
