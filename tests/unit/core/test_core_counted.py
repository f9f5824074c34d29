from __future__ import annotations

from filmloop.core.counted import counted


def test_one_thing_is_no_plural() -> None:
    assert counted(1, "shard") == "1 shard"
    assert counted(0, "shard") == "0 shards"
    assert counted(7362, "fresh frame") == "7,362 fresh frames"
    assert counted(2, "entry", "entries") == "2 entries"
