"""Raw messages over ZeroMQ come whole, in order and without a copy; what is damaged in one is refused and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from filmloop.adapters.sources.zmq_raw import HEADER, encode
from filmloop.core.types import BAD, SATURATED
from filmloop.testing.contracts.source import collect, keys_of
from filmloop.testing.shards import example_block
from rigs.wire import SHAPE, decoded_or_counted


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
