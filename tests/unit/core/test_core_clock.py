from __future__ import annotations

import re
import time

from filmloop.core.clock import epoch_s, new_id, utc_now, utc_text


def test_text_is_utc_to_the_millisecond() -> None:
    assert utc_text(0.0) == "1970-01-01T00:00:00.000Z"
    assert utc_text(1_795_352_701.25) == "2026-11-22T13:05:01.250Z"


def test_text_goes_back_to_seconds() -> None:
    assert epoch_s("2026-11-22T13:05:01.250Z") == 1_795_352_701.25
    assert abs(epoch_s(utc_now()) - time.time()) < 5.0


def test_text_sorts_by_time() -> None:
    times = [0.0, 9.999, 10.0, 1e9, 1_795_352_701.25]
    assert sorted(utc_text(t) for t in times) == [utc_text(t) for t in times]


def test_ids_are_readable_in_a_path_and_differ() -> None:
    assert re.fullmatch(r"c\d{8}-\d{6}-[0-9a-f]{4}", new_id("c"))
    # 16 random bits: ten ids of one second collide once in 1,456 runs, three hardly ever in two values.
    assert len({new_id("c") for _ in range(3)}) >= 2
