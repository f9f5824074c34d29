"""Which shards a cycle trains on. Torch-free and quick: `status` and the wait for frames ask the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from filmloop.ledger import DAMAGED, TRAINED
from filmloop.staging.catalog import SealedShard, sealed_shards


def usable_shards(
    stage: Path, stream: str, frame_shape: tuple[int, int], states: Mapping[str, str]
) -> list[SealedShard]:
    """Sealed shards of the stream with frames of this shape, but those that were set aside as damaged, oldest first."""
    return [
        shard
        for shard in sealed_shards(stage, stream)
        if shard.manifest.frame_shape == frame_shape and states.get(shard.shard_id) != DAMAGED
    ]


def is_fresh(shard: SealedShard, states: Mapping[str, str]) -> bool:
    """Whether no finished cycle has trained on the shard."""
    return states.get(shard.shard_id) != TRAINED


def frames_of(shards: list[SealedShard]) -> int:
    """Frames of all of them."""
    return sum(shard.manifest.frames for shard in shards)


def newest(shards: list[SealedShard], max_frames: int) -> list[SealedShard]:
    """The newest shards of together at most `max_frames` frames (but one, if it alone is larger), oldest first."""
    taken: list[SealedShard] = []
    room = max_frames
    for shard in reversed(shards):
        if room <= 0 or (taken and shard.manifest.frames > room):
            break
        taken.append(shard)
        room -= shard.manifest.frames
    return taken[::-1]
