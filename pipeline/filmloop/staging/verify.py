"""The deep check of a sealed shard: every byte, every file, every statement of its manifest that can be checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from filmloop.core.counted import counted
from filmloop.core.errors import DataError, VerificationError
from filmloop.staging.reader import ShardReader

_BLOCK_FRAMES = 4096


def verify_shard(manifest_path: Path, *, digest: str | None = None) -> None:
    """Read all of a shard and compare it with its manifest; says nothing if all is well.

    Args:
        manifest_path: The manifest; the group lies beside it.
        digest: Digest that the manifest must have, where the caller was promised one (a job's `ShardRef`). Without
            it, an edit of the manifest that fits the data (a dropped range, say) cannot be seen.

    Raises:
        VerificationError: the manifest is not the promised one.
        DataError: anything else differs; names the shard and the file.
    """
    reader = ShardReader(manifest_path, check="hashes")
    shard_id, ids = reader.manifest.shard_id, {"shard_id": reader.manifest.shard_id, "path": str(manifest_path)}
    if digest is not None and reader.manifest_digest != digest:
        raise VerificationError(
            f"The manifest of shard {shard_id} is not the promised one: "
            f"digest {reader.manifest_digest[:12]}, expected {digest[:12]}.",
            hint="It was edited or replaced; `filmloop shards list` shows where it lies.",
            ids=ids,
        )
    for problem in (_wrong_files(reader, manifest_path), _wrong_values(reader)):
        if problem:
            raise DataError(
                f"Shard {shard_id} is damaged: {problem}.",
                hint="Ship it again from where it was sealed, or remove it.",
                ids=ids,
            )


def _wrong_files(reader: ShardReader, manifest_path: Path) -> str:
    group_path = manifest_path.with_name(reader.manifest.group)
    names = {
        "zarr.json",
        *(f"{spec.name}/zarr.json" for spec in reader.specs),
        *(spec.data_file() for spec in reader.specs),
    }
    expected = {f"{group_path.name}/{name}" for name in names}
    listed = [file.path for file in reader.manifest.files]
    found = {path.relative_to(manifest_path.parent).as_posix() for path in group_path.rglob("*") if path.is_file()}
    if differing := sorted(expected ^ set(listed)):
        return f"its manifest should list {counted(len(expected), 'file')} and is wrong about {', '.join(differing)}"
    if differing := sorted(expected ^ found):
        return f"its group has or lacks, against its manifest, {', '.join(differing)}"
    if len(listed) != len(expected):
        return "its manifest lists a file twice"
    return ""


def _wrong_values(reader: ShardReader) -> str:
    """What the arrays say against the manifest; reading them checks every CRC."""
    manifest = reader.manifest
    for start in range(0, manifest.frames, _BLOCK_FRAMES):
        reader.block(start, start + _BLOCK_FRAMES)
    first, last = int(reader.pulse_id_N.min()), int(reader.pulse_id_N.max())
    if (first, last) != (manifest.first_pulse_id, manifest.last_pulse_id):
        return (
            f"its pulse ids go from {first} to {last}, its manifest says "
            f"{manifest.first_pulse_id} to {manifest.last_pulse_id}"
        )
    versions, frames = np.unique(reader.version_N, return_counts=True)
    if {str(version): int(count) for version, count in zip(versions, frames, strict=True)} != manifest.model_versions:
        return "its frames were inferred by other model versions than its manifest says"
    _ = reader.phase_N  # any sort key will do, but it must decode
    if not (reader.weight_N > 0).all():
        return "a frame has a weight that is not positive"
    return ""
