"""The files of a group: as zarr-python would have made them, from rows in any portions."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import blosc
import numcodecs
import numpy as np
import pytest
import zarr

from filmloop.staging.codec import Codec
from filmloop.staging.zarrfile import ChunkedColumn, GroupFolder
from filmloop.testing.shards import example_block, write_shard

COUNTS = Codec(compressor="lz4", item_bytes=1)


@pytest.mark.parametrize("layout", ["dense", "events"])
def test_zarr_python_would_have_written_the_same_metadata(tmp_path: Path, layout: str) -> None:
    shard = write_shard(tmp_path, example_block(40, labelled=True), layout=layout)
    for name, array in zarr.open_group(shard.group_path, mode="r").arrays():
        ours = json.loads((shard.group_path / name / "zarr.json").read_text())
        assert json.loads(json.dumps(array.metadata.to_dict())) == ours, name


def test_a_whole_chunk_is_packed_from_where_it_lies_and_a_part_waits_in_a_copy() -> None:
    packed: list[np.ndarray] = []

    class Watching(Codec):
        def pack(self, values: np.ndarray) -> tuple[bytes, bytes]:
            packed.append(values)
            return super().pack(values)

    column = ChunkedColumn("uint8", (3,), 4, Watching(compressor="lz4", item_bytes=1))
    rows = np.arange(36, dtype=np.uint8).reshape(12, 3)
    column.append(rows[:8])
    assert [np.shares_memory(values, rows) for values in packed] == [True, True]
    column.append(rows[8:10])
    assert len(packed) == 2
    column.append(rows[10:])
    assert [np.shares_memory(values, rows) for values in packed] == [True, True, False]
    # Rows that are of another type or not together in memory are copied, and right.
    for other in (rows[:4].astype(np.int64), np.asfortranarray(rows[:4])):
        column.append(other)
        np.testing.assert_array_equal(packed[-1], rows[:4])
        assert not np.shares_memory(packed[-1], other)


def test_the_file_is_the_same_however_the_rows_came_and_however_often_it_is_asked_for() -> None:
    rows = np.random.default_rng(1).poisson(0.3, (50, 4, 16)).astype(np.uint8)
    files = []
    for size in (1, 7, 16, 50):
        column = ChunkedColumn("uint8", (4, 16), 16, COUNTS)
        for start in range(0, 50, size):
            column.append(rows[start : start + size])
        files.append(b"".join(column.file()))
        assert b"".join(column.file()) == files[-1]
        assert column.rows == 50
    assert len(set(files)) == 1


def test_a_column_without_a_row_still_has_a_chunk_that_its_index_tells_of() -> None:
    column = ChunkedColumn("uint16", (), 16, Codec(compressor="lz4", item_bytes=2))
    file = b"".join(column.file())
    assert (column.chunks, column.chunk_rows) == (1, 1)
    place, size_bytes = np.frombuffer(file[-20:-4], "<u8")
    assert (place, size_bytes) == (0, len(file) - 20)
    assert blosc.decompress(file[: size_bytes - 4]) == bytes(2)


def test_the_inner_block_on_disk_is_the_one_that_the_metadata_tell_of(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, example_block(512, frame_shape=(16, 128)), frames_per_chunk=512)
    packed = (shard.group_path / "counts/c/0/0/0").read_bytes()
    chain = zarr.open_array(shard.group_path / "counts", mode="r").compressors
    # Bytes 8 to 12 of a blosc buffer: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    assert int.from_bytes(packed[8:12], "little") == chain[0].blocksize == 131072


@pytest.mark.parametrize(
    ("compressor", "dtype", "shuffle"),
    [("lz4", "uint8", 2), ("lz4", "uint16", 2), ("lz4", "float32", 1), ("zstd", "uint64", 1), ("zstd", "float16", 1)],
)
def test_a_chunk_is_packed_as_numcodecs_would_to_the_byte(compressor: str, dtype: str, shuffle: int) -> None:
    values = np.random.default_rng(2).poisson(0.3, (200, 16, 128)).astype(dtype)
    packed, _ = Codec(compressor=compressor, item_bytes=values.itemsize).pack(values)
    assert packed == numcodecs.Blosc(compressor, 1, shuffle, 131072, typesize=values.itemsize).encode(values)


def test_values_that_do_not_lie_in_order_are_refused_and_never_packed_as_others() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        COUNTS.pack(np.zeros((4, 4, 16), np.uint8)[:, ::2])


def test_packing_leaves_the_interpreter_to_other_threads() -> None:
    # 64 MB take some 50 ms; a thread that could not run meanwhile would count nothing.
    values = np.random.default_rng(1).poisson(0.3, (32768, 16, 128)).astype(np.uint8)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        time.sleep(0.02)
        before = counted[0]
        COUNTS.pack(values)
        assert counted[0] - before > 1000
    finally:
        stop.set()
        counter.join()
    # It tells the former value.
    assert blosc.set_nthreads(1) == 1


def test_a_file_is_hashed_as_it_is_written_and_never_written_twice(tmp_path: Path) -> None:
    folder = GroupFolder(tmp_path / "group")
    folder.write("a/c/0", [b"one", b"", b"two"])
    data = (tmp_path / "group/a/c/0").read_bytes()
    assert data == b"onetwo"
    assert [(file.path, file.size_bytes, file.sha256) for file in folder.files] == [
        ("a/c/0", 6, hashlib.sha256(data).hexdigest())
    ]
    with pytest.raises(FileExistsError):
        folder.write("a/c/0", [b"again"])
    with pytest.raises(FileExistsError):
        GroupFolder(tmp_path / "group")
