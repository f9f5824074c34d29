"""The connection of a ZeroMQ source: its address, its silence, and a message that no check saw through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.live import LiveSource
from filmloop.adapters.sources.zmq_raw import encode
from filmloop.adapters.sources.zmq_send import Sender
from filmloop.config.schema import ZeroMqSource
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.types import FrameBlock
from filmloop.ports.source import problems_of
from filmloop.testing.contracts.source import collect
from filmloop.testing.shards import example_block
from rigs.wire import SHAPE


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
    assert wire.sender.send(encode(np.ones((2, *SHAPE), np.uint8), run_number=1))
    assert len(collect(wire.source, 2)) == 1
    assert wire.problems.alarms == ()
