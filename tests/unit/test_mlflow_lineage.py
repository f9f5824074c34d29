"""The tags that say which shards a version was trained on."""

from __future__ import annotations

import json

from filmloop.adapters.mlflow.lineage import LINEAGE_TAG, MAX_TAG_CHARS, SHARDS_TAG, lineage_tags


def lineage_of(chars: int) -> dict[str, str]:
    """One that takes as many characters as JSON."""
    empty = len(json.dumps({"s/run000001/00000000": ""}))
    return {"s/run000001/00000000": "d" * (chars - empty)}


def test_the_shards_stand_one_by_one_up_to_the_last_character_that_a_tag_has_room_for() -> None:
    fits = lineage_tags(lineage_of(MAX_TAG_CHARS))
    assert len(fits[LINEAGE_TAG]) == MAX_TAG_CHARS
    too_long = lineage_tags(lineage_of(MAX_TAG_CHARS + 1))
    assert set(too_long) == {SHARDS_TAG}


def test_the_digest_tells_every_change_and_no_order() -> None:
    shards = {f"s/run000001/{n:08d}": f"{n:064x}" for n in range(2000)}
    tag = lineage_tags(shards)[SHARDS_TAG]
    assert len(tag) < 500
    assert lineage_tags(dict(reversed(shards.items())))[SHARDS_TAG] == tag
    assert lineage_tags({**shards, "s/run000001/00000777": "0" * 64})[SHARDS_TAG] != tag


def test_a_version_of_no_shards_has_its_tags_too() -> None:
    tags = lineage_tags({})
    assert json.loads(tags[LINEAGE_TAG]) == {}
    assert json.loads(tags[SHARDS_TAG])["shards"] == 0
