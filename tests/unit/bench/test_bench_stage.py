"""The writers that staging is measured against write the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from filmloop.bench.stage import PEERS, WRITERS, make_columns, measure
from filmloop.staging.schema import Layout

h5py = pytest.importorskip("h5py")
pytest.importorskip("hdf5plugin")
tensorstore = pytest.importorskip("tensorstore")


@pytest.mark.parametrize("layout", ["dense", "events"])
def test_every_writer_writes_the_same_arrays(tmp_path: Path, layout: Layout) -> None:
    # One batch more than a chunk, so that the last chunk is a part.
    columns = make_columns(layout, 1280)
    for name, write in WRITERS.items():
        write(tmp_path / name, columns)
    group_path = next(tmp_path.glob("filmloop/*/*/*.zarr"))
    with h5py.File(tmp_path / "h5py/shard.h5") as file:
        for name, values in columns.items():
            ours = zarr.open_array(group_path / name, mode="r")
            theirs = zarr.open_array(tmp_path / "zarr_python" / name, mode="r")
            assert (ours.chunks, ours.shards, ours.compressors) == (theirs.chunks, theirs.shards, theirs.compressors)
            store = {"driver": "file", "path": f"{tmp_path}/tensorstore/{name}/"}
            third = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result().read().result()
            for array in (ours[...], theirs[...], third, file[name][...]):
                np.testing.assert_array_equal(array, values)
            assert file[name].chunks == ours.chunks


def test_a_measurement_tells_of_both_layouts_and_every_peer(tmp_path: Path) -> None:
    found = measure(1, 2048, tmp_path / "bench")
    assert (found["rounds"], found["frames_per_shard"]) == (1, 2048)
    for values in (found, found["events"]):
        assert values["frames_per_cpu_s"] > 0
        assert set(values["frames_per_cpu_s_peers"]) == set(PEERS)
        assert all(values[f"ratio_to_{name}"] > 0 for name in PEERS)
        assert set(values["peak_mb"]) == set(values["bytes_per_frame"]) == set(WRITERS)
    # The raw counts are 2048 bytes a frame.
    assert all(100 < size < 1000 for size in found["bytes_per_frame"].values())
    assert list((tmp_path / "bench").glob("*/*")) == []
