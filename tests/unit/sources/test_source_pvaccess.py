"""Every update of a pvAccess channel comes as frames, whatever its type, stack, packing and numbering."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numcodecs
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.pva_serve import NtndServer, ntnd
from filmloop.config.loader import parse_site
from filmloop.config.schema import PvAccessSource
from filmloop.core.errors import ConfigError
from filmloop.core.types import BAD, SATURATED, FrameBlock
from filmloop.ports.source import FrameSource, problems_of
from filmloop.testing.contracts.source import keys_of
from filmloop.testing.shards import example_block

SHAPE = (4, 16)
CHANNEL = "TEST:Pva1:Image"


@pytest.fixture
def server() -> Iterator[NtndServer]:
    server = NtndServer(CHANNEL)
    yield server
    server.close()


@pytest.fixture
def opened(server: NtndServer) -> Iterator[Any]:
    made: list[FrameSource] = []

    def make(fields: dict[str, object] | None = None, **keys: object) -> FrameSource:
        made.append(build_source(PvAccessSource(channel=CHANNEL, addresses=(server.address,), **keys), SHAPE))
        made[-1].open(after=None)
        connect(made[-1], server, fields or {})
        return made[-1]

    yield make
    for source in made:
        source.close()


def connect(source: FrameSource, server: NtndServer, fields: dict[str, object] | None = None) -> None:
    """A frame has come through: from now on none is missed."""
    for number in range(200):
        server.post(np.zeros(SHAPE, np.uint8), number, **(fields or {}))
        if source.read(1000, 0.05):
            source.read(1000, 0.05)
            return
    raise AssertionError("not connected")


def take(source: FrameSource, frames: int) -> list[FrameBlock]:
    blocks: list[FrameBlock] = []
    end_s = time.monotonic() + 20
    while sum(map(len, blocks)) < frames and time.monotonic() < end_s:
        if block := source.read(1000):
            blocks.append(block)
    return blocks


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64"])
def test_frames_of_any_number_type_come_in_the_detectors_axes(server: NtndServer, opened: Any, dtype: str) -> None:
    source = opened()
    counts_NCE = example_block(3, frame_shape=SHAPE).counts_NCE
    for row in range(3):
        server.post(counts_NCE[row].astype(dtype), 1000 + row)
    blocks = take(source, 3)
    assert keys_of(blocks) == [(1, 1000), (1, 1001), (1, 1002)]
    np.testing.assert_array_equal(np.concatenate([b.counts_NCE for b in blocks]), counts_NCE)


def test_a_stack_is_as_many_frames_with_ids_that_follow(server: NtndServer, opened: Any) -> None:
    source = opened(run_number=5, pulse_id_step=48)
    stack = example_block(48, frame_shape=SHAPE).counts_NCE
    for number in (10, 11):
        server.post(stack, number)
    blocks = take(source, 96)
    assert keys_of(blocks) == [(5, row) for row in range(480, 576)]
    np.testing.assert_array_equal(np.concatenate([b.counts_NCE for b in blocks]), np.concatenate([stack, stack]))


def attribute(name: str, value: object) -> dict[str, object]:
    return {"attribute": [{"name": "Other", "value": 3}, {"name": name, "value": value}]}


@pytest.mark.parametrize(
    ("keys", "fields", "ids"),
    [
        ({}, {}, [70, 71]),
        ({"pulse_id": "timeStamp"}, {"dataTimeStamp": {"secondsPastEpoch": 1_700_000_000, "nanoseconds": 5}},
         [1_700_000_000_000_000_005, 1_700_000_000_000_000_006]),
        ({"pulse_id": "attribute", "pulse_id_attribute": "Pulse"}, attribute("Pulse", 2**40), [2**40, 2**40 + 1]),
        ({"pulse_id": "attribute", "pulse_id_attribute": "Pulse"}, attribute("Pulse", np.array([9, 4])), [9, 4]),
    ],
)  # fmt: skip
def test_the_pulse_id_is_where_the_site_says(
    server: NtndServer, opened: Any, keys: dict, fields: dict, ids: list[int]
) -> None:
    source = opened(attribute("Pulse", 1), **keys)
    server.post(np.ones((2, *SHAPE), np.uint8), 70, **fields)
    blocks = take(source, 2)
    assert np.concatenate([block.pulse_id_N for block in blocks])[-2:].tolist() == ids


def test_an_attribute_that_is_not_there_or_of_another_length_is_a_malformed_update(server, opened: Any) -> None:
    source = build_source(
        PvAccessSource(channel=CHANNEL, addresses=(server.address,), pulse_id="attribute", pulse_id_attribute="Pulse"),
        SHAPE,
    )
    source.open(after=None)
    while not problems_of(source).malformed_messages:
        server.post(np.ones(SHAPE, np.uint8), 1)
        assert not source.read(5, 0.05)
    assert "its Pulse None is no pulse id" in problems_of(source).last_problem
    server.post(np.ones((2, *SHAPE), np.uint8), 1, **attribute("Pulse", np.arange(3)))
    end_s = time.monotonic() + 10
    while "3 pulse ids for 2 frames" not in problems_of(source).last_problem and time.monotonic() < end_s:
        source.read(5, 0.05)
    assert "3 pulse ids for 2 frames" in problems_of(source).last_problem
    source.close()


def test_clipped_and_impossible_counts_are_flagged(server: NtndServer, opened: Any) -> None:
    source = opened()
    stack = np.ones((3, *SHAPE), np.int32)
    stack[1, 0, 0], stack[2, 0, 0] = 300, -1
    server.post(stack, 500)
    assert np.concatenate([block.flags_N for block in take(source, 3)]).tolist() == [0, SATURATED, BAD]


@pytest.mark.parametrize("shape", [(16, 4), (5, 5), (64,), (1, 1, *SHAPE)])
def test_updates_of_another_shape_come_flagged_bad(server: NtndServer, opened: Any, shape: tuple[int, ...]) -> None:
    source = opened()
    server.post(np.ones(shape, np.uint8), 500)
    (block,) = take(source, 1)
    assert (block.pulse_id_N.tolist(), block.flags_N.tolist()) == ([500], [BAD])
    assert problems_of(source).bad_frames == 1


def packed(array: np.ndarray, codec: str, data: bytes, parameters: object) -> dict[str, object]:
    return {
        **ntnd(array, 0),
        "uniqueId": 600,
        "value": ("ubyteValue", np.frombuffer(data, np.uint8)),
        "codec": {"name": codec, "parameters": parameters},
        "compressedSize": len(data),
    }


IMAGE = example_block(1, frame_shape=SHAPE).counts_NCE[0].astype(np.uint16)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("blosc", bytes(numcodecs.Blosc("lz4").encode(IMAGE))),
        ("blosc", bytes(numcodecs.Blosc("zstd", shuffle=2).encode(IMAGE))),
        # areaDetector's bare block: what numcodecs puts in front is the length.
        ("lz4", bytes(numcodecs.LZ4().encode(IMAGE))[4:]),
    ],
    ids=["blosc of lz4", "blosc of zstd", "lz4"],
)
def test_packed_arrays_are_unpacked(server: NtndServer, opened: Any, codec: str, data: bytes) -> None:
    source = opened()
    # 6 is pvUShort among pvData's ScalarTypes.
    server.post(IMAGE, 0, **packed(IMAGE, codec, data, 6))
    (block,) = take(source, 1)
    assert block.pulse_id_N.tolist() == [600]
    np.testing.assert_array_equal(block.counts_NCE[0], IMAGE)


SOUND = bytes(numcodecs.Blosc("lz4").encode(IMAGE))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (packed(IMAGE, "jpeg", SOUND, 6), "codec 'jpeg' is not one of"),
        (packed(IMAGE, "blosc", SOUND, None), "does not name the pixels' type"),
        (packed(IMAGE, "blosc", SOUND, 5), "does not hold the 64 bytes"),
        (packed(IMAGE, "blosc", b"short", 6), "does not hold"),
        (packed(IMAGE, "blosc", SOUND[:16] + bytes(40), 6), "cannot unpack"),
        (packed(IMAGE, "lz4", b"garbage", 6), "cannot unpack"),
        (
            packed(IMAGE, "lz4", b"garbage", 6) | {"dimension": [{"size": 2**30}, {"size": 2**10}]},
            "max_update_mb forbids it",
        ),
        ({"dimension": [{"size": 16}, {"size": 5}]}, "64 pixels for dimensions"),
        ({"dimension": [{"size": -16}, {"size": -4}]}, "dimensions"),
        ({"dimension": [{"size": 16}, {"size": 4}, *[{"size": 1}] * 68]}, "an array of 70 dimensions"),
    ],
)
def test_an_update_that_cannot_be_understood_is_counted_and_the_next_one_comes(
    server: NtndServer, opened: Any, fields: dict, says: str
) -> None:
    source = opened()
    server.post(IMAGE, 600, **fields)
    server.post(IMAGE, 601)
    blocks = take(source, 1)
    assert [int(block.pulse_id_N[-1]) for block in blocks] == [601]
    assert problems_of(source).malformed_messages == 1
    assert says in problems_of(source).last_problem


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300, 2.0**64, -1, 0.5, "seven", 2**63, np.array([1.0, np.inf])])
def test_a_number_that_is_no_pulse_id_of_64_bits_is_refused_and_the_next_one_comes(
    server: NtndServer, opened: Any, value: object
) -> None:
    # Times two, 2**63 is one, too.
    keys = {"pulse_id": "attribute", "pulse_id_attribute": "Pulse", "pulse_id_step": 2}
    source = opened(attribute("Pulse", 1), **keys)
    server.post(np.ones((2, *SHAPE), np.uint8), 1, **attribute("Pulse", value))
    server.post(np.ones((2, *SHAPE), np.uint8), 1, **attribute("Pulse", 300))
    assert keys_of(take(source, 2)) == [(1, 600), (1, 601)]
    assert problems_of(source).malformed_messages == 1
    assert "its " in problems_of(source).last_problem


def test_whatever_is_damaged_in_an_update_it_is_decoded_or_counted(server: NtndServer, opened: Any) -> None:
    source, rng = (
        opened(attribute("Pulse", 1), pulse_id="attribute", pulse_id_attribute="Pulse"),
        np.random.default_rng(5),
    )
    numbers = [0, 1, 4, 16, -1, 2**31 - 1, -(2**31)]
    sound = {**ntnd(IMAGE, 0), **attribute("Pulse", 2**40)}
    refused = 0
    for _ in range(300):
        data = bytearray(SOUND)
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        change = {
            "dimension": [{"size": int(rng.choice(numbers))} for _ in range(rng.integers(5))],
            "value": (str(rng.choice(["ubyteValue", "floatValue"])), np.ones(rng.integers(70), np.uint8)),
            "attribute": [{"name": "Pulse", "value": float(rng.choice([*numbers, 1e30, np.nan]))}],
        }
        change |= packed(IMAGE, str(rng.choice(["lz4", "blosc"])), bytes(data), int(rng.integers(-1, 12)))
        fields = {name: change[name] for name in rng.choice(list(change), rng.integers(1, 4))}
        before = problems_of(source).malformed_messages
        server.post(IMAGE, 600, **{**sound, **attribute("Pulse", 1), **fields})
        server.post(IMAGE, 601, **sound)
        blocks = take(source, 1)
        while blocks[-1].pulse_id_N[-1] != 2**40:
            blocks += take(source, 1)
        malformed = problems_of(source).malformed_messages - before
        assert "cannot be decoded" not in problems_of(source).last_problem
        assert malformed + sum(map(len, blocks)) >= 1
        assert malformed in (0, 1)
        assert not (malformed and sum(map(len, blocks)) > 1)
        refused += malformed
    assert 50 < refused < 290


def test_a_channel_of_another_type_is_a_clear_problem() -> None:
    from p4p.nt import NTScalar
    from p4p.server import Server
    from p4p.server.raw import SharedPV

    loopback = {"EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1", "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1"}
    loopback |= {"EPICS_PVAS_SERVER_PORT": "0", "EPICS_PVAS_BROADCAST_PORT": "0"}
    scalar = SharedPV(initial=NTScalar("d").wrap(3.0))
    with Server(providers=[{CHANNEL: scalar}], conf=loopback, useenv=False) as other:
        address = f"127.0.0.1:{other.conf()['EPICS_PVAS_BROADCAST_PORT']}"
        source = build_source(PvAccessSource(channel=CHANNEL, addresses=(address,)), SHAPE)
        source.open(after=None)
        assert not source.read(5, 2.0)
        assert "is no NTNDArray" in problems_of(source).last_problem
        source.close()


def test_updates_that_overran_the_queue_are_counted_where_the_ids_come_from_elsewhere(server, opened: Any) -> None:
    source = opened(queue_updates=4, pulse_id="timeStamp")
    for number in range(1000, 1100):
        server.post(np.ones(SHAPE, np.uint8), number, dataTimeStamp={"secondsPastEpoch": number})
    time.sleep(0.3)
    blocks = take(source, 1)
    came = sum(map(len, blocks))
    # The last is never lost: what overruns is replaced by what is newer.
    assert blocks[-1].pulse_id_N[-1] == 1099 * 10**9
    missed = problems_of(source).missed_updates
    assert missed >= 100 - came > 0


def test_a_server_that_goes_and_comes_back_is_found_again(server: NtndServer, opened: Any) -> None:
    source = opened(alarm_after_s=0.2)
    port = int(server.address.rpartition(":")[2])
    server.close()
    assert not source.read(5, 0.5)
    assert problems_of(source).disconnects == 1
    assert "No frame" in problems_of(source).alarms[0]
    again = NtndServer(CHANNEL, port)
    connect(source, again)
    assert problems_of(source).alarms == ()
    again.close()


def test_nobody_who_answers_is_an_alarm_and_no_error() -> None:
    # Port 9 discards.
    source = build_source(PvAccessSource(channel="NOT:THERE", addresses=("127.0.0.1:9",), alarm_after_s=0.05), SHAPE)
    source.open(after=None)
    assert len(source.read(5, 0.1)) == 0
    assert "No frame on 'pvaccess'" in problems_of(source).alarms[0]
    source.close()


def test_an_attribute_and_its_name_belong_together() -> None:
    for wrong in ({"pulse_id": "attribute"}, {"pulse_id_attribute": "Pulse"}):
        with pytest.raises(ConfigError, match="belong together"):
            parse_site({"source": {"kind": "pvaccess", "channel": "X", **wrong}})
