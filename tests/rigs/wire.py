"""A ZeroMQ source and one sender to it: what is sent, and what comes of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.zmq_raw import encode
from filmloop.adapters.sources.zmq_send import Sender, hdf5_image
from filmloop.config.schema import ZeroMqSource
from filmloop.core.types import FrameBlock
from filmloop.ports.source import FrameSource, SourceProblems, problems_of

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


def image(**arrays: np.ndarray) -> list[bytes]:
    return [hdf5_image({f"/{name}": values for name, values in arrays.items()})]


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
