"""lclstreamer's messages come whole in every packing and layout; what is damaged in one is refused and counted."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.zmq_send import CODECS, hdf5_image
from filmloop.core.types import BAD
from filmloop.testing.contracts.source import collect, keys_of
from filmloop.testing.shards import example_block
from rigs.wire import SHAPE, decoded_or_counted, image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("codec", CODECS)
def test_every_packing_of_lclstreamer_gives_the_counts_back(wires: Any, codec: str, dtype: type) -> None:
    block = example_block(20, frame_shape=SHAPE)
    arrays = {"/timestamp": np.arange(7.0, 27.0), "/counts": block.counts_NCE.astype(dtype)}
    packed = hdf5_image(arrays, codec)
    with h5py.File(BytesIO(packed)) as file:
        filters = file["counts"].id.get_create_plist().get_nfilters()
        assert bool(filters) == (codec != "none" and (codec != "zfp" or dtype is np.float32))
    wire = wires(dialect="lclstreamer", run_number=3)
    blocks = wire.pass_on([packed])
    assert keys_of(blocks) == [(3, row) for row in range(7, 27)]
    np.testing.assert_array_equal(np.concatenate([b.counts_NCE for b in blocks]), block.counts_NCE)


def test_paths_ids_and_runs_lie_where_the_site_says(wires: Any) -> None:
    fields = {"pulse_id": "/event/stamp", "counts": "/mrco/dense", "run_number": "/event/run"}
    wire = wires(dialect="lclstreamer", fields=fields, pulse_id_scale=1e9)
    arrays = {
        "/event/stamp": np.array([1.5, 2.5, np.nan, 1e300, 3.0000000010]),
        "/mrco/dense": np.ones((5, *SHAPE), np.uint8),
        "/event/run": np.array([4, 4, 4, 4, 5]),
    }
    assert wire.sender.send([hdf5_image(arrays)])
    blocks = collect(wire.source, 3)
    assert keys_of(blocks) == [(4, 1_500_000_000), (4, 2_500_000_000), (5, 3_000_000_001)]
    assert wire.problems.refused_frames == 2


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_events_that_psana_has_no_pulse_id_for_are_refused_and_counted(wires: Any, dtype: type) -> None:
    wire = wires(dialect="lclstreamer")
    blocks = wire.pass_on(
        image(timestamp=np.array([4, -999, 6, -999], dtype), counts=np.arange(4 * 64, dtype="u1").reshape(4, *SHAPE))
    )
    assert keys_of(blocks) == [(1, 4), (1, 6)]
    assert np.concatenate([block.counts_NCE for block in blocks])[:, 0, 0].tolist() == [0, 128]
    assert wire.problems.refused_frames == 2


def test_stamps_of_lcls_ii_keep_apart_at_a_megahertz(wires: Any) -> None:
    # Seconds since 1990 in the upper half, ns in the lower; 929 kHz is a pulse every 1077 ns, the grid of float64 1024.
    stamps = (1_130_000_000 << 32) + np.arange(2000, dtype=np.uint64) * 1077
    blocks = wires(dialect="lclstreamer").pass_on(
        image(timestamp=stamps.astype(np.float64), counts=np.ones((2000, *SHAPE), np.uint8))
    )
    ids_N = np.concatenate([block.pulse_id_N for block in blocks])
    assert len(np.unique(ids_N)) == 2000
    assert (np.abs(ids_N.astype(np.int64) - stamps.astype(np.int64)) <= 512).all()


HITS = {"form": "hits", "dialect": "lclstreamer"}


def test_padded_hits_with_and_without_a_count_become_counts(wires: Any) -> None:
    hits = np.array([[35, 35, -1], [15, -1, -1]], np.int16)
    pairs = np.array([[[2, 3.5], [2, 3.0], [0, 0]], [[0, 15], [np.nan, np.nan], [9, 9]]])
    ids = np.array([1, 2])
    plain = wires(**HITS).pass_on(image(timestamp=ids, hits=hits))
    counted = wires(**HITS, fields={"hit_counts": "/n"}).pass_on(image(timestamp=ids, hits=pairs, n=np.array([2, 1])))
    for (block,) in (plain, counted):
        assert [tuple(place) for place in np.argwhere(block.counts_NCE)] == [(0, 2, 3), (1, 0, 15)]
        assert block.counts_NCE.sum() == 3
        assert not block.flags_N.any()


def test_flat_hits_with_offsets_become_counts(wires: Any) -> None:
    wire = wires(**HITS, fields={"hit_offsets": "/first"})
    assert wire.sender.send(image(timestamp=np.array([1, 2]), hits=np.array([35, 35, 15]), first=np.array([0, 2, 3])))
    (block,) = collect(wire.source, 2)
    assert block.counts_NCE.sum(axis=(1, 2)).tolist() == [2, 1]


def test_an_event_whose_hits_cannot_be_is_bad_and_the_others_come(wires: Any) -> None:
    wire = wires(**HITS, fields={"hit_counts": "/n"})
    (block,) = wire.pass_on(
        image(timestamp=np.arange(4), hits=np.array([[1, 2], [1, 64], [1, 2], [3, 4]]), n=np.array([2, 2, 3, 0]))
    )
    assert block.flags_N.tolist() == [0, BAD, BAD, 0]
    assert block.counts_NCE.sum(axis=(1, 2)).tolist() == [2, 0, 0, 0]
    assert wire.problems.bad_frames == 2


def bomb(**arrays: Any) -> list[bytes]:
    """1 TB of zeros in a kilobyte: no chunk was ever written."""
    file = BytesIO()
    with h5py.File(file, "w") as out:
        out["timestamp"] = np.arange(2)
        out.create_dataset("counts", (2, 2**20, 2**19), np.uint8, chunks=arrays.get("chunks", (1, 64, 64)))
    return [file.getvalue()]


def chunk_bomb() -> list[bytes]:
    """Two frames in one chunk of 512 MB, which a byte of gzip a thousand would fill."""
    file = BytesIO()
    with h5py.File(file, "w") as out:
        out["timestamp"] = np.arange(2)
        out.create_dataset(
            "counts", (2, *SHAPE), np.uint8, maxshape=(None,) * 3, chunks=(2, 2**14, 2**14), compression="gzip"
        )
    return [file.getvalue()]


def external(folder: Path) -> list[bytes]:
    """Counts that lie in a file of this machine."""
    (folder / "secret").write_bytes(bytes(128))
    file = BytesIO()
    with h5py.File(file, "w") as out:
        out["timestamp"] = np.arange(2)
        out.create_dataset("counts", (2, *SHAPE), np.uint8, external=[(str(folder / "secret"), 0, 128)])
    return [file.getvalue()]


def linked(folder: Path) -> list[bytes]:
    with h5py.File(folder / "other.h5", "w") as other:
        other["counts"] = np.ones((2, *SHAPE), np.uint8)
    file = BytesIO()
    with h5py.File(file, "w") as out:
        out["timestamp"] = np.arange(2)
        out["counts"] = h5py.ExternalLink(str(folder / "other.h5"), "/counts")
    return [file.getvalue()]


def misnamed() -> list[bytes]:
    """A byte of a name is no UTF-8 any more."""
    return [image(timestamp=IDS, counts=COUNTS)[0].replace(b"counts", b"co\xffnts")]


def test_padded_hits_that_would_take_more_than_the_limit_as_counts_are_refused(wires: Any) -> None:
    file = BytesIO()
    with h5py.File(file, "w") as out:
        out["timestamp"], out["hits"] = np.arange(2000), np.full((2000, 1), -1, np.int8)
    wire = wires(**HITS, max_message_mb=0.1)
    assert wire.pass_on([file.getvalue()]) == []
    assert wire.problems.malformed_messages == 1
    assert "2000 frames of hits would take 0 MB as counts; max_message_mb" in wire.problems.last_problem


@pytest.mark.parametrize("form", ["counts", "hits"])
def test_whatever_is_damaged_in_an_hdf5_message_it_is_decoded_or_counted(wires: Any, form: str) -> None:
    wire, rng = wires(dialect="lclstreamer", form=form), np.random.default_rng(7)
    arrays = {"counts": COUNTS.astype(np.float32)} if form == "counts" else {"hits": np.ones((2, 5), np.int16)}
    whole = hdf5_image({"/timestamp": IDS, **{f"/{name}": values for name, values in arrays.items()}}, "gzip")
    refused = []
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(8, len(broken), rng.integers(1, 5)):
            broken[place] = rng.integers(256)
        refused.append(decoded_or_counted(wire, [bytes(broken)]))
    assert 20 < sum(refused) < 280


COUNTS, IDS = np.ones((2, *SHAPE), np.uint8), np.arange(2)
WHOLE = image(timestamp=IDS, counts=COUNTS)[0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: [b""], "no HDF5"),
        (lambda _: [b"garbage" * 100], "no HDF5"),
        (lambda _: [WHOLE, WHOLE], "2 parts"),
        (lambda _: [WHOLE[:8]], "no readable HDF5"),
        (lambda _: [WHOLE[: len(WHOLE) // 2]], "no readable HDF5"),
        (lambda _: image(counts=COUNTS), "no data set /timestamp; it holds counts"),
        (lambda _: image(timestamp=IDS, other=COUNTS), "no data set /counts"),
        (lambda _: image(timestamp=np.arange(3), counts=COUNTS), "2 rows, not 3"),
        (lambda _: image(timestamp=np.array([b"1", b"2"]), counts=COUNTS), "/timestamp is |S1"),
        (lambda _: image(timestamp=np.ones((2, 2)), counts=COUNTS), "pulse ids are float64 (2, 2)"),
        (lambda _: bomb(), "max_message_mb"),
        (lambda _: chunk_bomb(), "max_message_mb"),
        (lambda _: misnamed(), "no data set /counts; it holds"),
        (external, "not an array of numbers in the message"),
        (linked, "no data set /counts"),
    ],
)
def test_a_malformed_hdf5_message_is_counted_and_the_stream_goes_on(
    wires: Any, tmp_path: Path, make: Any, says: str
) -> None:
    wire = wires(dialect="lclstreamer")
    blocks = wire.pass_on(make(tmp_path), image(timestamp=np.array([3, 4]), counts=COUNTS))
    assert keys_of(blocks) == [(1, 3), (1, 4)]
    assert wire.problems.malformed_messages == 1
    assert says in wire.problems.last_problem


@pytest.mark.parametrize("run", [-999, 10**6, 2**64 - 1])
def test_events_of_a_run_that_no_shard_could_be_named_after_are_refused(wires: Any, run: int) -> None:
    wire = wires(dialect="lclstreamer", fields={"run_number": "/run"})
    runs = np.array([3, run], np.int64 if run < 0 else np.uint64)
    blocks = wire.pass_on(
        image(timestamp=IDS, counts=COUNTS, run=runs),
        image(timestamp=IDS, counts=COUNTS, run=np.array([3, 999_999])),
    )
    assert keys_of(blocks) == [(3, 0), (999_999, 1)]
    assert wire.problems.malformed_messages == 1
    assert "run numbers" in wire.problems.last_problem


@pytest.mark.parametrize(
    ("counts", "flags"),
    [(np.ones((2, 16, 4), np.uint8), [BAD, BAD]), (np.ones((2, 64), np.uint8), [BAD, BAD])],
)
def test_events_of_another_shape_come_flagged_bad(wires: Any, counts: np.ndarray, flags: list[int]) -> None:
    wire = wires(dialect="lclstreamer")
    (block,) = wire.pass_on(image(timestamp=IDS, counts=counts))
    assert block.flags_N.tolist() == flags
    assert block.counts_NCE.shape == (2, *SHAPE)
