"""Which sealed shards go when there are more than the site keeps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filmloop.core.fsio import disk_errors, fsync_dir
from filmloop.staging.layout import EXPIRED_SUFFIX, MANIFEST_SUFFIX, name_of, shard_files
from filmloop.staging.recovery import finish_expiry


def expire(stage: Path, stream: str, keep: int, may_go: Callable[[str], bool]) -> list[str]:
    """Remove the oldest shards of `stream` beyond the newest `keep`; returns the ids of those that went.

    The newest shard always stays: a restart continues its accounting. The manifest goes first, by a rename that also
    marks the group: a manifest without a group would be a lie, and a crash in between is finished by `recover`.

    Args:
        stage: Folder of all shards.
        stream: Name of the stream.
        keep: How many stay at least.
        may_go: Says of a shard id whether it is needed no more (shipped and trained on).

    Raises:
        TransientError: the disk refuses; call again.
    """
    gone = []
    manifests = list(shard_files(stage, stream, MANIFEST_SUFFIX))
    for manifest_path in manifests[: -max(keep, 1)]:
        if not may_go(name_of(manifest_path).shard_id):
            continue
        expired = manifest_path.with_name(manifest_path.name + EXPIRED_SUFFIX)
        with disk_errors(manifest_path):
            os.replace(manifest_path, expired)
            fsync_dir(manifest_path.parent)
            gone.append(finish_expiry(expired))
    return gone
