"""Chunks that are packed side by side make the same shard as those that are packed one after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from filmloop.staging.codec import Codec
from filmloop.staging.zarrfile import ChunkedColumn

CODEC = Codec(compressor="lz4", item_bytes=1)
ROWS = np.random.default_rng(3).poisson(0.4, (1000, 4, 16)).astype(np.uint8)


def column(pack_all=map):
    return ChunkedColumn("u1", (4, 16), 64, CODEC, pack_all)


def filled(cuts, pack_all=map):
    made = column(pack_all)
    for part in np.split(ROWS, cuts):
        made.append(part)
    return b"".join(made.file())


@pytest.mark.parametrize("cuts", [[], [64, 512], [1, 2, 3, 700], [63, 64, 65, 129, 999], [10, 640]])
def test_the_file_is_the_same_however_rows_come_and_whoever_packs(cuts):
    one_by_one = column()
    for row in ROWS:
        one_by_one.append(row[None])
    expected = b"".join(one_by_one.file())
    with ThreadPoolExecutor(3) as pool:
        assert filled(cuts) == filled(cuts, pool.map) == expected


def test_whole_chunks_are_packed_at_the_same_time():
    together = threading.Barrier(3, timeout=20)

    class Meeting(Codec):
        def pack(self, values):
            together.wait()
            return super().pack(values)

    with ThreadPoolExecutor(3) as pool:
        made = ChunkedColumn("u1", (4, 16), 64, Meeting(compressor="lz4", item_bytes=1), pool.map)
        made.append(ROWS[: 3 * 64])
        assert made.rows == 192
