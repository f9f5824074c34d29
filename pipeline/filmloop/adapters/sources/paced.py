"""What every source that makes its own frames shares: a steady rate, and frames kept ready for the next read."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock

BACKLOG_S = 1.0
"""A reader that was away gets at most this much of the past at once; nothing is skipped, the schedule moves."""

COALESCE_S = 0.01
"""Frames are handed out in steps of about this time, unless the reader sets another: one by one, 2000 a second would
cost a core in calls alone."""

AHEAD_FRAMES = 2048
"""Most frames that are made ready at once: 4 MB at 16 x 128, some 50 ms of the simulator, so that a read is short."""


class Schedule:
    """When frames are due: `rate_hz` a second by the monotonic clock, or all at once for 0."""

    def __init__(self, rate_hz: float, coalesce_s: float = COALESCE_S) -> None:
        self._rate_hz, self._coalesce_s = rate_hz, coalesce_s
        self._zero_s: float | None = None

    def wait(self, max_frames: int, timeout_s: float) -> int:
        """How many of `max_frames` frames may be handed out now; sleeps until some may, at most `timeout_s`."""
        if not self._rate_hz:
            return max_frames
        now_s = time.monotonic()
        if self._zero_s is None:
            self._zero_s = now_s
        self._zero_s = max(self._zero_s, now_s - max(BACKLOG_S, 1 / self._rate_hz))
        step = max(1, min(max_frames, int(self._rate_hz * self._coalesce_s)))
        pause_s = self._zero_s + step / self._rate_hz - now_s
        if pause_s > 0:
            time.sleep(min(pause_s, timeout_s))
        # A hair more than due: sleep() ends within a microsecond of the step, on either side.
        due = int((time.monotonic() - self._zero_s) * self._rate_hz + 1e-3)
        return min(due, max_frames)

    def took(self, frames: int) -> None:
        """That many were handed out."""
        if self._rate_hz and self._zero_s is not None:
            self._zero_s += frames / self._rate_hz


class PacedSource(ABC):
    """Base of the sources; a subclass says where it begins (`open`) and what comes next (`_more`).

    Attributes:
        coalesce_s: How long frames may wait for others to be handed out with them; set it before `open`.
    """

    def __init__(self, *, stream: str, frame_shape: tuple[int, int], labelled: bool, rate_hz: float) -> None:
        self.stream = stream
        self.frame_shape = frame_shape
        self.labelled = labelled
        self.coalesce_s = COALESCE_S
        self._rate_hz = rate_hz
        self._schedule: Schedule | None = None
        self._ahead: FrameBlock | None = None

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """See `filmloop.ports.source.FrameSource.read`."""
        if self._schedule is None:
            raise DataError(f"Source {self.stream!r} is not open.", hint="Call open() first.")
        if not self._ahead:
            self._ahead = self._more(min(max_frames, AHEAD_FRAMES))
        if self._ahead is None:
            return None
        frames = self._schedule.wait(min(max_frames, len(self._ahead)), timeout_s)
        block, self._ahead = self._ahead[:frames], self._ahead[frames:]
        self._schedule.took(len(block))
        return block

    def close(self) -> None:
        """See `filmloop.ports.source.FrameSource.close`."""
        self._schedule, self._ahead = None, None

    @abstractmethod
    def open(self, *, after: tuple[int, int] | None) -> None:
        """See `filmloop.ports.source.FrameSource.open`."""

    @abstractmethod
    def _more(self, wanted: int) -> FrameBlock | None:
        """The next frames of one run, about `wanted` or more where that is cheaper; None at the end."""

    def _start(self) -> None:
        """The clock starts, and nothing is ahead."""
        self._schedule, self._ahead = Schedule(self._rate_hz, self.coalesce_s), None
