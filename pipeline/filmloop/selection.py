"""Which shards a cycle trains on. Torch-free and quick: `status` and the wait for frames ask the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from filmloop.config.schema import SiteConfig
from filmloop.ledger import DAMAGED, TRAINED
from filmloop.staging.catalog import SealedShard, sealed_shards


def usable_shards(stage: Path, stream: str, config: SiteConfig, states: Mapping[str, str]) -> list[SealedShard]:
    """Sealed shards of the stream that the site can train on, oldest first.

    Left out are those with frames of another shape, those that were set aside as damaged, those without labels where
    training needs some, and dark ones: a version that was trained and judged on dark frames alone would be promoted
    for what it makes of darkness.
    """
    labelled = config.training.hyper.labelled
    return [
        shard
        for shard in sealed_shards(stage, stream)
        if shard.manifest.frame_shape == config.frame_shape
        and states.get(shard.shard_id) != DAMAGED
        and (shard.manifest.labelled or not labelled)
        and not shard.manifest.is_dark
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
