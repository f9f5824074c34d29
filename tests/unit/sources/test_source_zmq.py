"""What senders push over ZeroMQ comes whole and in order, in both dialects and every packing; what is wrong is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.live import LiveSource
from filmloop.adapters.sources.zmq_raw import HEADER, encode
from filmloop.adapters.sources.zmq_send import CODECS, Sender, hdf5_image
from filmloop.config.schema import ZeroMqSource
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.types import BAD, SATURATED, FrameBlock
from filmloop.ports.source import FrameSource, SourceProblems, problems_of
from filmloop.testing.contracts.source import collect, keys_of
from filmloop.testing.shards import example_block

SHAPE = (4, 16)


class Wire:
    """A source and one sender to it."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.endpoint = f"ipc://{folder}/wire"
        section = ZeroMqSource(endpoints=(self.endpoint,), role="bind", **keys)
        self.source: FrameSource = build_source(section, SHAPE)
        self.source.open(after=None)
        self.sender = Sender(self.endpoint, bind=False)

    def close(self) -> None:
        self.source.close()
        self.sender.close(linger_s=0.0)

    def pass_on(self, *messages: list[Any], frames: int = 10_000) -> list[FrameBlock]:
        """Send these and a last, sound one of a frame with id 2**40; the blocks of all but that."""
        for message in messages:
            assert self.sender.send(message)
        last = encode(np.zeros((1, *SHAPE), np.uint8), run_number=9, first_pulse_id=2**40)
        if self.source._section.dialect == "lclstreamer":
            hits = self.source._section.form == "hits"
            field = {"/hits": np.zeros((1, 1), np.int16)} if hits else {"/counts": np.zeros((1, *SHAPE), np.uint8)}
            extra = {name: np.zeros(1, np.int64) for name in ("/n", "/run")}
            last = [hdf5_image({"/timestamp": np.array([2**40]), **field, **extra})]
        self.sender.send(last)
        blocks: list[FrameBlock] = []
        end_s = time.monotonic() + 30
        while not blocks or blocks[-1].pulse_id_N[-1] != 2**40:
            assert time.monotonic() < end_s
            if block := self.source.read(frames):
                blocks.append(block)
        blocks[-1] = blocks[-1][:-1]
        return [block for block in blocks if len(block)]

    @property
    def problems(self) -> SourceProblems:
        return problems_of(self.source)


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Any]:
    made: list[Wire] = []

    def make(**keys: object) -> Wire:
        made.append(Wire(tmp_path, **keys))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


def image(**arrays: np.ndarray) -> list[bytes]:
    return [hdf5_image({f"/{name}": values for name, values in arrays.items()})]


# --- raw ---


def test_raw_frames_arrive_as_they_were_sent_and_without_a_copy(wires: Any) -> None:
    block = example_block(300, frame_shape=SHAPE)
    (got,) = wires().pass_on(encode(block.counts_NCE, run_number=7, first_pulse_id=500))
    assert got.run_number == 7
    assert got.pulse_id_N.tolist() == list(range(500, 800))
    np.testing.assert_array_equal(got.counts_NCE, block.counts_NCE)
    base: Any = got.counts_NCE
    while isinstance(base, np.ndarray):
        base = base.base
    # ZeroMQ's own buffer.
    assert isinstance(base, memoryview)


def test_a_message_larger_than_a_read_is_split_into_views_of_it(wires: Any) -> None:
    wire = wires()
    wire.sender.send(encode(example_block(1000, frame_shape=SHAPE).counts_NCE, run_number=1))
    parts = collect(wire.source, 1000, max_frames=300)
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    bases = {part.counts_NCE.__array_interface__["data"][0] - 300 * 64 * row for row, part in enumerate(parts)}
    assert len(bases) == 1


def test_small_messages_of_a_run_that_wait_come_together_and_runs_stay_apart(wires: Any) -> None:
    wire = wires()
    one = example_block(1, frame_shape=SHAPE).counts_NCE
    blocks = wire.pass_on(
        *(encode(one, run_number=1 + (row >= 50), first_pulse_id=row) for row in range(100)), frames=4096
    )
    assert keys_of(blocks) == [(1 + (row >= 50), row) for row in range(100)]
    # ZeroMQ hands them over as they come; most of them wait by then.
    assert len(blocks) < 40


def test_raw_ids_flags_and_hits_travel_as_parts_of_their_own(wires: Any) -> None:
    counts_NCE = np.zeros((3, *SHAPE), np.uint8)
    counts_NCE[1, 2, 3], counts_NCE[2, 0, 15] = 2, 1
    ids, flags = np.array([5, 9, 7], np.uint64), np.array([0, SATURATED, 0], np.uint8)
    hits, offsets = np.array([35, 35, 15], np.uint16), np.array([0, 0, 2, 3], np.uint64)
    blocks = wires().pass_on(
        encode(counts_NCE, run_number=1, pulse_id_N=ids, flags_N=flags),
        encode(hits, run_number=2, pulse_id_N=ids, offset_N=offsets, frame_shape=SHAPE),
        frames=3,
    )
    # As they came: to put ids in order is the edge's business.
    assert keys_of(blocks) == [(1, 5), (1, 9), (1, 7), (2, 5), (2, 9), (2, 7)]
    assert blocks[0].flags_N.tolist() == [0, SATURATED, 0]
    for block in blocks:
        np.testing.assert_array_equal(block.counts_NCE, counts_NCE)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i8", "f4", "f8"])
def test_counts_of_any_number_type_are_checked_and_clipped(wires: Any, dtype: str) -> None:
    counts_NCE = np.ones((4, *SHAPE), dtype)
    flags = [0, 0, 0, 0]
    if dtype != "u1":
        counts_NCE[1, 0, 0], flags[1] = 256, SATURATED
    if dtype[0] != "u":
        counts_NCE[2, 0, 0], flags[2] = -1, BAD
    if dtype[0] == "f":
        counts_NCE[3, 0, 0], flags[3] = 0.5, BAD
    wire = wires()
    (got,) = wire.pass_on(encode(counts_NCE, run_number=1))
    assert got.flags_N.tolist() == flags
    assert got.counts_NCE[:, 0, 0].tolist() == [1, 255 if flags[1] else 1, 0 if flags[2] else 1, 0 if flags[3] else 1]
    assert wire.problems.bad_frames == flags.count(BAD)


def test_frames_of_another_shape_come_flagged_bad_with_their_ids(wires: Any) -> None:
    wire = wires()
    blocks = wire.pass_on(
        encode(np.ones((3, 16, 4), np.uint8), run_number=1, first_pulse_id=10),
        encode(np.zeros(3, np.uint16), run_number=1, first_pulse_id=20, offset_N=np.arange(4), frame_shape=(1, 1)),
    )
    assert keys_of(blocks) == [(1, 10), (1, 11), (1, 12), (1, 20), (1, 21), (1, 22)]
    assert all((block.flags_N == BAD).all() and block.counts_NCE.shape[1:] == SHAPE for block in blocks)
    assert wire.problems.bad_frames == 6
    assert "not of (4, 16)" in wire.problems.last_problem


SOUND = encode(np.ones((2, *SHAPE), np.uint8), run_number=1)


def header(**change: Any) -> bytes:
    names = ("magic", "version", "flags", "run", "first", "frames", "channels", "energy_bins", "dtype")
    values = dict(zip(names, HEADER.unpack(SOUND[0]), strict=True)) | change
    return HEADER.pack(*values.values())


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([b""], "0 bytes"),
        ([b"garbage", b"more"], "7 bytes"),
        ([np.random.default_rng(1).bytes(40), SOUND[1]], "begins with"),
        ([header(version=2), SOUND[1]], "version 2"),
        ([header(dtype=b"|O"), SOUND[1]], "type b'|O'"),
        ([SOUND[0]], "1 parts, its header says 2"),
        ([*SOUND, b""], "3 parts"),
        ([SOUND[0], SOUND[1].tobytes()[:-1]], "127 bytes of uint8, its header says 128"),
        # A header alone that claims 8 TB takes no memory.
        ([header(frames=2**32 - 1), SOUND[1]], "says 274877906880"),
        ([header(flags=1), b"1234567", SOUND[1]], "7 bytes of uint64"),
        ([header(first=2**64 - 1), SOUND[1]], "pulse ids begin"),
        # Neither do 40 bytes and an offset that claim frames of hits, or frames without a bin.
        ([header(flags=2, frames=2**32 - 1), b"", bytes(8)], "says 34359738368"),
        ([header(frames=2**32 - 1, channels=0), b""], "shape (0, 16)"),
        ([header(frames=0, channels=2**32 - 1, energy_bins=2**32 - 1), b""], "max_message_mb"),
        ([header(run=10**6), SOUND[1]], "run number is 1000000"),
        ([header(run=2**64 - 1), SOUND[1]], "run number is 18446744073709551615"),
    ],
)
def test_a_malformed_raw_message_is_counted_and_the_stream_goes_on(wires: Any, message: list, says: str) -> None:
    wire = wires()
    blocks = wire.pass_on(message, encode(np.ones((2, *SHAPE), np.uint8), run_number=1, first_pulse_id=3))
    assert keys_of(blocks) == [(1, 3), (1, 4)]
    assert wire.problems.malformed_messages == 1
    assert says in wire.problems.last_problem
    assert says in wire.problems.alarms[0]


def test_hits_that_would_take_more_than_the_limit_as_counts_are_refused(wires: Any) -> None:
    wire = wires(max_message_mb=0.1)
    empty = encode(np.zeros(0, "u2"), run_number=1, offset_N=np.zeros(2000), frame_shape=SHAPE)
    few = encode(np.zeros(0, "u2"), run_number=1, offset_N=np.zeros(3), frame_shape=SHAPE)
    assert keys_of(wire.pass_on(empty, few)) == [(1, 0), (1, 1)]
    assert wire.problems.malformed_messages == 1
    assert "1999 frames of (4, 16) would take 0 MB; max_message_mb" in wire.problems.last_problem


DTYPES = ("u1", "u2", "i4", "f4", "f8")


def raw_message(rng: np.random.Generator) -> list[bytes]:
    """Up to three frames of counts or hits, with or without the parts that may be there."""
    frames, dtype = int(rng.integers(4)), rng.choice(DTYPES)
    extra: dict[str, Any] = {"pulse_id_N": np.arange(frames)} if rng.random() < 0.5 else {}
    if rng.random() < 0.5:
        extra["flags_N"] = np.zeros(frames)
    if rng.random() < 0.5:
        payload, extra["offset_N"] = np.ones(2 * frames, dtype), np.arange(frames + 1) * 2
        extra["frame_shape"] = SHAPE
    else:
        payload = np.ones((frames, *SHAPE), dtype)
    return [bytes(part) for part in encode(payload, run_number=1, first_pulse_id=5, **extra)]


def damaged(rng: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    """Some bytes are others, mostly of the first part, which says most; or a part is shorter, gone or there twice."""
    broken = [bytearray(part) for part in parts]
    how, which = rng.integers(8), int(rng.integers(len(broken)))
    if how == 0:
        del broken[which][int(rng.integers(len(broken[which]) + 1)) :]
    elif how == 1:
        broken.insert(which, broken[which])
    elif how == 2 and len(broken) > 1:
        del broken[which]
    else:
        for _ in range(rng.integers(1, 4)):
            part = broken[0] if rng.random() < 0.7 else broken[which]
            if part:
                part[int(rng.integers(len(part)))] = int(rng.integers(256))
    return [bytes(part) for part in broken]


def decoded_or_counted(wire: Wire, message: list[bytes]) -> bool:
    """Whether the message was refused; if so, none of its frames came, and the stream goes on in any case."""
    before = wire.problems.malformed_messages
    blocks = wire.pass_on(message)
    refused = wire.problems.malformed_messages - before
    assert refused in (0, 1)
    assert not (refused and blocks)
    assert "cannot be decoded" not in wire.problems.last_problem, "the checks are to say what is wrong with it"
    assert all(block.counts_NCE.shape[1:] == SHAPE and block.counts_NCE.dtype == np.uint8 for block in blocks)
    return bool(refused)


def test_whatever_is_damaged_in_a_raw_message_it_is_decoded_or_counted(wires: Any) -> None:
    wire, rng = wires(), np.random.default_rng(3)
    refused = [decoded_or_counted(wire, damaged(rng, raw_message(rng))) for _ in range(600)]
    assert 100 < sum(refused) < 500


def test_hits_with_wrong_offsets_are_bad_frames(wires: Any) -> None:
    wire = wires()
    blocks = wire.pass_on(
        encode(np.zeros(3, "u2"), run_number=1, offset_N=np.array([0, 9]), frame_shape=SHAPE, first_pulse_id=5)
    )
    assert keys_of(blocks) == [(1, 5)]
    assert blocks[0].flags_N.tolist() == [BAD]


# --- lclstreamer ---


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


# --- the connection ---


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, MemoryError, OverflowError, KeyError])
def test_a_message_that_a_decoder_fails_on_in_a_way_nobody_foresaw_costs_itself_alone(error: type[Exception]) -> None:
    class Unforeseen(LiveSource):
        reads = 0

        def _connect(self) -> None:
            pass

        def _receive(self, timeout_s: float) -> list[FrameBlock]:
            self.reads += 1
            if self.reads == 1:
                raise error("x" * 10_000)
            return [example_block(3, frame_shape=SHAPE)]

    source = Unforeseen(stream="s", frame_shape=SHAPE, alarm_after_s=1.0)
    source.open(after=None)
    assert len(source.read(3)) == 3
    assert problems_of(source).malformed_messages == 1
    assert error.__name__ in problems_of(source).last_problem
    assert len(problems_of(source).last_problem) == 500


def test_an_address_in_use_may_work_later_and_one_that_cannot_be_is_a_config_error(wires: Any) -> None:
    wires()
    sender = Sender("tcp://127.0.0.1:*")
    taken = build_source(ZeroMqSource(endpoints=(sender.endpoint,), role="bind"), SHAPE)
    with pytest.raises(TransientError, match="in use"):
        taken.open(after=None)
    sender.close()
    with pytest.raises(ConfigError, match="no-port"):
        build_source(ZeroMqSource(endpoints=("tcp://127.0.0.1:no-port",)), SHAPE).open(after=None)


def test_silence_is_an_alarm_that_ends_with_the_next_frame(wires: Any) -> None:
    wire = wires(alarm_after_s=0.1)
    assert wire.problems.alarms == ()
    assert len(wire.source.read(5, 0.2)) == 0
    assert "No frame on 'zeromq'" in wire.problems.alarms[0]
    assert wire.problems.silent_s > 0.1
    assert wire.sender.send(encode(COUNTS, run_number=1))
    assert len(collect(wire.source, 2)) == 1
    assert wire.problems.alarms == ()
