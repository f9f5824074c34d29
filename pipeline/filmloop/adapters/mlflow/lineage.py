"""Which shards a version was trained on, as tags: briefly in any case, one by one while there is room.

A tag has room for some 600 shards, and a cycle may train on more. The bundle's `result.json` has all of them, whatever fits here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from filmloop.core.fsio import canonical_json, sha256_bytes

LINEAGE_TAG = "filmloop.lineage"
"""Shard id -> digest of its manifest, as JSON; absent if that is too long."""
SHARDS_TAG = "filmloop.shards"
"""How many there are, the first and the last by name, and a digest of `lineage` in `result.json`, as JSON."""

MAX_TAG_CHARS = 65_535
"""Width of MLflow's column on MySQL. Its server takes 100,000 characters, the other databases have no limit."""


def lineage_tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """The tags of a version for `lineage`: shard id -> digest of its manifest."""
    names = sorted(lineage)
    brief = {
        "shards": len(names),
        "first": names[0] if names else "",
        "last": names[-1] if names else "",
        "sha256": sha256_bytes(canonical_json(dict(lineage))),
    }
    tags = {SHARDS_TAG: json.dumps(brief)}
    whole = json.dumps(dict(lineage), sort_keys=True)
    return tags | {LINEAGE_TAG: whole} if len(whole) <= MAX_TAG_CHARS else tags
