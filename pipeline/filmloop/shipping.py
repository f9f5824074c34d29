"""What a cycle sends to the cluster and brings back: which files, where to, and how to be sure that they arrived.

The cluster's root holds `data/<stream>/<run>/` (shards as on the edge), `weights/<model>/<version>/` and `runs/<job>/`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.bundle import verify_bundle
from filmloop.config.paths import Home
from filmloop.core.documents import FileDigest, ShardRef
from filmloop.core.errors import CancelledError, DataError, FilmloopError, TransientError, VerificationError
from filmloop.core.fsio import PART_SUFFIX, disk_errors, publish_dir, try_lock
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem, Mover, MoveStatus
from filmloop.ports.registry import Registry, not_there
from filmloop.staging.catalog import SealedShard

_MOVE_ATTEMPTS = 3
_LAST_SHARE = 0.1
"""In the last tenth of its time a move is not begun anew: an attempt that failed then was given up for its deadline."""
_DOWNLOAD_S = 300.0
"""So long a process waits for another one that brings bundles of the same model."""
_KINDS: dict[str, type[FilmloopError]] = {
    kind.__name__: kind for kind in (DataError, VerificationError, CancelledError, TransientError)
}


def shard_items(home: Home, shard: SealedShard) -> list[MoveItem]:
    """The files of a shard, its manifest last: on the cluster too, manifest present means shard whole."""
    source = shard.manifest_path.parent.relative_to(home.root).as_posix()
    target = (Path("data") / shard.manifest_path.parent.relative_to(home.stage)).as_posix()
    manifest = FileDigest.of(shard.manifest_path, shard.manifest_path.parent)
    return [MoveItem.below(source, file, target) for file in (*shard.manifest.files, manifest)]


def shard_ref(home: Home, shard: SealedShard, cluster_root: Path) -> ShardRef:
    """The shard as a job on the cluster names it."""
    return ShardRef(
        shard_id=shard.manifest.shard_id,
        manifest_path=str(cluster_root / "data" / shard.manifest_path.relative_to(home.stage)),
        manifest_digest=shard.manifest.digest(),
        frames=shard.manifest.frames,
    )


def shard_paths(home: Home, shard: SealedShard) -> list[str]:
    """What a shard occupies on the cluster, manifest first: without it the rest is an orphan, never a lie."""
    folder = Path("data") / shard.manifest_path.parent.relative_to(home.stage)
    return [(folder / shard.manifest_path.name).as_posix(), (folder / shard.manifest.group).as_posix()]


def weights_folder(model: str, version: str) -> str:
    """Where the bundle of a version lies on the cluster."""
    return f"weights/{model}/{version}"


def bundle_items(bundle: Path, root: Path, target_folder: str) -> list[MoveItem]:
    """Every file of a bundle that lies below `root` on this side."""
    source = bundle.relative_to(root).as_posix()
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return [MoveItem.below(source, FileDigest.of(path, bundle), target_folder) for path in files]


def keep_bundle(home: Home, model: str, version: str, bundle: Path) -> None:
    """Let `local_bundle` find what was just registered: the same files once more, by hard links.

    Raises:
        TransientError: the disk refuses.
    """
    kept = home.weights / model / version
    part = kept.with_name(f"{version}.kept{PART_SUFFIX}")
    with disk_errors(kept):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(bundle, part, copy_function=os.link)
        publish_dir(part, kept)


def kept_bundles(home: Home, model: str) -> dict[str, Path]:
    """Folders by version of the bundles that lie on this side, not verified; the last used one first.

    Raises:
        TransientError: the disk refuses.
    """
    with disk_errors(home.weights), suppress(FileNotFoundError):
        found = [path for path in (home.weights / model).iterdir() if path.is_dir() and "." not in path.name]
        return {path.name: path for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)}
    return {}


def local_bundle(home: Home, registry: Registry, version: str, *, digest: str = "") -> Path:
    """The bundle of a registered version on this side, verified; downloaded unless it is here already.

    `version` may be an alias; `digest` is the bundle's, for a caller who knows it and has the number.

    Of several processes that lack it one downloads, and the others wait for that: `filmloop models zoo` beside a cycle.

    Raises:
        DataError: no such version, or its bundle is not what was registered.
        TransientError: the registry is away, or another process has been downloading for minutes.
    """
    if not digest:
        info = registry.get(version)
        if info is None:
            raise not_there(registry, version)
        version, digest = info.version, info.bundle_digest
    folder = home.weights / registry.model / version
    if _is_here(folder, digest):
        return folder

    def brought() -> bool | None:
        # Beside the folders of the models, where housekeeping counts nothing.
        with try_lock(home.weights / f"{registry.model}.lock") as free:
            if not free:
                return None
            if not _is_here(folder, digest):
                registry.download(version, folder)
                verify_bundle(folder, digest=digest)
            return True

    hint = "Rerun: by then it is here."
    wait_until(brought, deadline_s=_DOWNLOAD_S, what="A download by another process", hint=hint)
    return folder


def _is_here(folder: Path, digest: str) -> bool:
    try:
        verify_bundle(folder, digest=digest)
    except DataError:
        return False
    return True


def move(
    mover: Mover,
    direction: Direction,
    items: Sequence[MoveItem],
    *,
    key: str,
    deadline_s: float,
    poll_s: float,
    keep_handle: Callable[[str], None],
    tell: Callable[[str], None],
) -> dict[str, int]:
    """Submit and poll until all files have arrived; a move that failed for a passing reason is submitted again.

    `deadline_s` is for all attempts together, and they are one move to the mover: what one has brought is not sent again
    by the next. What it waits for is told whenever that changes.

    Raises:
        DataError: a file is not what it should be.
        CancelledError: a person has stopped it at the service that moves.
        TransientError: the deadline passed, or three attempts failed for a passing reason; the next call goes on.
        FilmloopError: the mover failed for a reason that nobody foresaw.
    """
    said, end_s = "", time.monotonic() + deadline_s
    for _ in range(_MOVE_ATTEMPTS):
        handle = mover.submit(direction, items, key=key)
        keep_handle(handle)

        def ended(handle: str = handle) -> MoveStatus | None:
            nonlocal said
            status = mover.poll(handle)
            if status.state != "active":
                return status
            if status.detail != said:
                said = status.detail
                if said:
                    tell(said)
            return None

        status = wait_until(
            ended, deadline_s=deadline_s, end_s=end_s, what=f"The move {direction}", first_s=0.02, cap_s=poll_s,
            last=lambda: said, hint="Rerun: it goes on where it was. [mover] deadline_s allows it more time.",
        )  # fmt: skip
        if status.state == "succeeded":
            return {"files": len(items), "bytes": sum(item.size_bytes for item in items)}
        if not status.retryable or end_s - time.monotonic() < _LAST_SHARE * deadline_s:
            break
    raise _error_of(status, f"The move {direction} failed: {status.detail}")


def _error_of(status: MoveStatus, message: str) -> FilmloopError:
    kind = _KINDS.get(status.error, TransientError if status.retryable else FilmloopError)
    hint = "Rerunning goes on with what is missing."
    if issubclass(kind, DataError):
        hint = "`filmloop shards verify` checks the files on this side."
    return kind(message, hint=status.hint or hint)
