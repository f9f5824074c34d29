"""What every frame source promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from filmloop.core.types import FrameBlock
from filmloop.ports.source import FrameSource

SourceFactory = Callable[[], FrameSource]
"""Makes a new source, not yet open, over the same frames at every call."""

Key = tuple[int, int]


def collect(source: FrameSource, frames: int, *, max_frames: int = 64) -> list[FrameBlock]:
    """Blocks until `frames` frames have come or the source ends; gives up after 30 s."""
    blocks: list[FrameBlock] = []
    end_s = time.monotonic() + 30
    while frames > 0 and time.monotonic() < end_s:
        block = source.read(min(max_frames, frames))
        if block is None:
            break
        if len(block):
            blocks.append(block)
            frames -= len(block)
    return blocks


def keys_of(blocks: list[FrameBlock]) -> list[Key]:
    """(run number, pulse id) of every frame, in order."""
    return [(block.run_number, int(pulse_id)) for block in blocks for pulse_id in block.pulse_id_N]


def _form(array: npt.NDArray[Any]) -> tuple[tuple[int, ...], str]:
    return array.shape, array.dtype.name


class SourceContract:
    """Subclass it and provide the fixture `make_source`.

    Attributes:
        frames: How many frames are looked at; a source without end must be able to give that many quickly.
        finite: Whether the source ends after `frames` frames exactly.
        goes_back: Whether it can continue after a frame of the past; a live source cannot.
    """

    frames = 150
    finite = True
    goes_back = True

    @pytest.fixture
    def make_source(self) -> SourceFactory:
        """A factory of sources over the same frames; at least three of them, in blocks of any size."""
        raise NotImplementedError

    @pytest.fixture
    def source(self, make_source: SourceFactory) -> Iterator[FrameSource]:
        """One open source, from its beginning."""
        source = make_source()
        source.open(after=None)
        yield source
        source.close()

    def test_blocks_have_the_promised_form(self, source: FrameSource) -> None:
        """Types, shapes, and labels exactly where they are announced."""
        blocks = collect(source, self.frames)
        assert sum(map(len, blocks)) == self.frames
        for block in blocks:
            shape = (len(block), *source.frame_shape)
            assert _form(block.counts_NCE) == (shape, "uint8")
            assert _form(block.pulse_id_N) == (shape[:1], "uint64")
            assert _form(block.flags_N) == (shape[:1], "uint8")
            assert (block.label_NCE is not None) == source.labelled
            if block.label_NCE is not None:
                assert _form(block.label_NCE) == (shape, "float32")

    def test_a_pulse_id_comes_once_in_a_run_and_they_grow(self, source: FrameSource) -> None:
        """(run, pulse id) names a frame, and the order is that of time."""
        keys = keys_of(collect(source, self.frames))
        assert keys == sorted(set(keys))

    @pytest.mark.parametrize("max_frames", [1, 7, 1000])
    def test_never_gives_more_than_asked(self, source: FrameSource, max_frames: int) -> None:
        """And gives something: a block of one frame is a block."""
        blocks = collect(source, 20, max_frames=max_frames)
        assert sum(map(len, blocks)) == 20
        assert max(map(len, blocks)) <= max_frames

    def test_the_end_stays_the_end(self, source: FrameSource) -> None:
        """None once means None for ever."""
        if not self.finite:
            pytest.skip("this source has no end")
        collect(source, self.frames)
        assert [source.read(8), source.read(8)] == [None, None]

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_continues_right_after_a_frame(self, make_source: SourceFactory, share: float) -> None:
        """Every later frame comes again, none twice, whatever the cut."""
        if not self.goes_back:
            pytest.skip("a live source begins with the present")
        whole = self._frames_after(make_source(), None, self.frames)
        cut = int(share * self.frames)
        rest = self._frames_after(make_source(), list(whole)[cut - 1], self.frames - cut)
        assert list(rest) == list(whole)[cut:]
        assert all(np.array_equal(rest[key], whole[key]) for key in rest)

    def test_nothing_comes_after_the_last_frame(self, make_source: SourceFactory) -> None:
        """A restart at the end ends at once."""
        if not (self.finite and self.goes_back):
            pytest.skip("this source has no end, or no past")
        last = list(self._frames_after(make_source(), None, self.frames))[-1]
        assert self._frames_after(make_source(), last, 1) == {}

    def test_a_read_comes_back_in_time(self, source: FrameSource) -> None:
        """An edge that waits for frames must hear a stop request soon; a second allows for a busy machine."""
        begin_s = time.monotonic()
        source.read(10**6, timeout_s=0.05)
        assert time.monotonic() - begin_s < 1.05

    def test_close_may_be_called_twice_and_open_again(self, make_source: SourceFactory) -> None:
        """A restart inside one process."""
        source = make_source()
        source.open(after=None)
        first = keys_of(collect(source, 5))
        source.close()
        source.close()
        source.open(after=None)
        second = keys_of(collect(source, 5))
        source.close()
        assert len(first) == len(second) == 5
        assert first == second or not self.goes_back

    def _frames_after(self, source: FrameSource, after: Key | None, frames: int) -> dict[Key, npt.NDArray[np.uint8]]:
        source.open(after=after)
        try:
            blocks = collect(source, frames, max_frames=37)
        finally:
            source.close()
        counts = [image for block in blocks for image in block.counts_NCE]
        return dict(zip(keys_of(blocks), counts, strict=True))
