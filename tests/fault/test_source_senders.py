"""Senders that die, come back, are slow, are several or send too much: nothing is lost, doubled or torn, nothing ends."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.zmq_raw import encode
from filmloop.adapters.sources.zmq_send import Sender
from filmloop.config.schema import ZeroMqSource
from filmloop.ports.source import FrameSource, problems_of

SHAPE = (16, 128)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a sender as a facility would: a process of its own."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "filmloop.adapters.sources.zmq_send", *map(str, arguments)]
        begun.append(subprocess.Popen([*command, "--pool", "1024"]))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait(10)


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., tuple[FrameSource, str]]]:
    """Opens a source that listens, and says where."""
    made: list[FrameSource] = []

    def make(**keys: object) -> tuple[FrameSource, str]:
        endpoint = f"ipc://{tmp_path}/wire"
        source = build_source(ZeroMqSource(endpoints=(endpoint,), **{"role": "bind", **keys}), SHAPE)
        source.open(after=None)
        made.append(source)
        return source, endpoint

    yield make
    for source in made:
        source.close()


def dial(endpoint: str) -> socket.socket:
    """A bare connection, without ZeroMQ."""
    wire = socket.socket(socket.AF_UNIX)
    wire.connect(endpoint.removeprefix("ipc://"))
    return wire


def take(source: FrameSource, frames: int, *, within_s: float = 60.0) -> np.ndarray:
    """(run, pulse id) of at least so many frames; fewer if they do not come in time."""
    parts: list[np.ndarray] = []
    end_s = time.monotonic() + within_s
    while sum(map(len, parts)) < frames and time.monotonic() < end_s:
        block = source.read(4096)
        assert block is not None
        if len(block):
            parts.append(np.column_stack((np.full(len(block), block.run_number, np.uint64), block.pulse_id_N)))
    return np.concatenate([np.zeros((0, 2), np.uint64), *parts])


def test_a_hundred_thousand_frames_of_two_senders_at_once_arrive_exactly_once(start: Start, listen) -> None:
    source, endpoint = listen()
    for run in (1, 2):
        start(endpoint, "--connect", "--frames", 50_000, "--run", run, "--batch", 300)
    got = take(source, 100_000)
    assert len(source.read(10, 0.5)) == 0
    for run in (1, 2):
        # Each sender's frames in its own order.
        assert (got[got[:, 0] == run, 1] == np.arange(50_000)).all()
    assert problems_of(source).malformed_messages == 0


def test_a_sender_that_is_killed_and_started_again_goes_on_and_no_frame_is_torn(start: Start, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/theirs"
    source = build_source(ZeroMqSource(endpoints=(endpoint,)), SHAPE)
    source.open(after=None)
    first = start(endpoint, "--run", 1)
    assert len(take(source, 5_000)) >= 5_000
    first.kill()
    first.wait(10)
    rest = take(source, 10**9, within_s=1.0)
    start(endpoint, "--run", 2)
    again = take(source, len(rest) + 5_000)
    assert (again[:, 0] == 2).any()
    assert (again[again[:, 0] == 2, 1][:5000] == np.arange(5000)).all()
    assert problems_of(source).malformed_messages == 0
    assert problems_of(source).disconnects >= 1
    source.close()


def test_a_sender_that_dies_in_the_middle_of_a_message_leaves_no_frame(listen) -> None:
    source, endpoint = listen()
    # ZMTP 3.0 by hand: greeting, READY of a PUSH socket, then a frame that says 1 MB and brings 1 kB.
    with dial(endpoint) as wire:
        wire.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        wire.settimeout(5)
        # The other side's greeting: it is not ready for ours before.
        assert len(wire.recv(64, socket.MSG_WAITALL)) == 64
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 4) + b"PUSH"
        wire.sendall(bytes([4, len(ready)]) + ready)
        # A whole message of three bytes shows that the handshake was taken.
        wire.sendall(b"\x00\x03abc")
        source.read(10, 0.3)
        assert problems_of(source).malformed_messages == 1
        wire.sendall(b"\x02" + struct.pack(">Q", 1_000_000) + bytes(1000))
        assert len(source.read(10, 0.3)) == 0
    sender = Sender(endpoint, bind=False)
    sender.send(encode(np.ones((3, *SHAPE), np.uint8), run_number=1, first_pulse_id=7))
    assert take(source, 3)[:, 1].tolist() == [7, 8, 9]
    assert problems_of(source).disconnects == 1
    sender.close()


def test_bytes_that_are_no_zeromq_at_all_do_not_disturb_the_others(listen) -> None:
    source, endpoint = listen()
    sender = Sender(endpoint, bind=False)
    for seed in range(20):
        with dial(endpoint) as wire:
            wire.sendall(np.random.default_rng(seed).bytes(500))
        sender.send(encode(np.ones((1, *SHAPE), np.uint8), run_number=1, first_pulse_id=seed))
    assert take(source, 20)[:, 1].tolist() == list(range(20))
    sender.close()


def test_a_full_queue_makes_the_sender_wait_and_loses_nothing(listen) -> None:
    source, endpoint = listen(queue_messages=2)
    sender = Sender(endpoint, bind=False, queue_messages=2)
    sent = 0
    # 2 MB a message: the queues of both sides and the kernel's buffers hold a few of them.
    while sender.send(encode(np.ones((1000, *SHAPE), np.uint8), run_number=1, first_pulse_id=sent), timeout_s=0.3):
        sent += 1000
    assert 2_000 <= sent <= 20_000
    assert take(source, sent)[:, 1].tolist() == list(range(sent))
    assert sender.send(encode(np.ones((1, *SHAPE), np.uint8), run_number=1, first_pulse_id=sent))
    assert take(source, 1)[:, 1].tolist() == [sent]
    sender.close()


def test_a_message_beyond_the_limit_never_gets_memory_and_the_next_one_comes(listen) -> None:
    source, endpoint = listen(max_message_mb=1.0)
    sender = Sender(endpoint, bind=False)
    sender.send(encode(np.ones((1000, *SHAPE), np.uint8), run_number=1))
    assert len(source.read(10, 0.3)) == 0
    # ZeroMQ hung up on the sender, which comes back by itself.
    other = Sender(endpoint, bind=False)
    other.send(encode(np.ones((10, *SHAPE), np.uint8), run_number=2))
    assert set(take(source, 10)[:, 0]) == {2}
    assert problems_of(source).disconnects >= 1
    sender.close(linger_s=0.0)
    other.close()


def test_a_slow_sender_is_waited_for_without_an_alarm(start: Start, listen) -> None:
    source, endpoint = listen(alarm_after_s=20.0)
    start(endpoint, "--connect", "--rate", 20, "--batch", 2)
    begin_s = time.monotonic()
    assert take(source, 20)[:20, 1].tolist() == list(range(20))
    assert time.monotonic() - begin_s > 0.8
    assert problems_of(source).alarms == ()
