"""What every live source shares: waiting frames handed out in views, and trouble that is counted and never ends it.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.recording import checked_counts
from filmloop.core.counted import counted
from filmloop.core.errors import DataError
from filmloop.core.log import Limited
from filmloop.core.types import BAD, FrameBlock
from filmloop.ports.source import SourceProblems

_log = logging.getLogger(__name__)

JOIN_BELOW_FRAMES = 256
"""Smaller blocks are joined if more wait: their copy (0.5 MB at most at 16 x 128) costs less than a read each."""

ALARM_LASTS_S = 60.0
"""A problem is an alarm for so long: a minute is seen by any poll of the edge's status."""


_MOST_CHARACTERS = 500
"""A problem says no more: names and types in a damaged message may be as long as it likes."""

_UNFORESEEN = (ValueError, TypeError, RuntimeError, MemoryError, ArithmeticError, LookupError)
"""What a decoder may raise of a message that its checks did not see through."""


class Malformed(Exception):  # noqa: N818  # as the messages are called; caught by the source that reads them
    """A message that cannot be understood; says what is wrong with it."""


class LiveSource(ABC):
    """Base of the sources that are sent to; a subclass connects (`_connect`) and takes what has come (`_receive`).

    It cannot go back: `open` begins with the present, whatever came before.
    """

    labelled = False

    def __init__(self, *, stream: str, frame_shape: tuple[int, int], alarm_after_s: float) -> None:
        self.stream = stream
        self.frame_shape = frame_shape
        self._alarm_after_s = alarm_after_s
        self._waiting: deque[FrameBlock] = deque()
        self._counts: Counter[str] = Counter()
        self._open = False
        self._heard_s = self._problem_s = 0.0
        self._last_problem = self._why_silent = ""
        self._trouble, self._silence = Limited(_log), Limited(_log)

    def open(self, *, after: tuple[int, int] | None) -> None:
        """See `filmloop.ports.source.FrameSource.open`; the present is where a live source begins.

        Raises:
            ConfigError: an address or a name cannot be.
            TransientError: it is in use.
        """
        self.close()
        self._counts.clear()
        self._last_problem, self._why_silent, self._heard_s = "", "", time.monotonic()
        self._connect()
        self._open = True

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """See `filmloop.ports.source.FrameSource.read`; never None, as a live source has no end."""
        if not self._open:
            raise DataError(f"Source {self.stream!r} is not open.", hint="Call open() first.")
        if not self._waiting:
            self._fill(time.monotonic() + timeout_s)
        if not self._waiting:
            return self._nothing()
        block = self._waiting.popleft()
        if len(block) < min(max_frames, JOIN_BELOW_FRAMES):
            block = self._joined(block, max_frames)
        if len(block) > max_frames:
            self._waiting.appendleft(block[max_frames:])
            block = block[:max_frames]
        return block

    def close(self) -> None:
        """See `filmloop.ports.source.FrameSource.close`; frames that wait are gone."""
        self._open = False
        self._waiting.clear()

    @property
    def problems(self) -> SourceProblems:
        """What went wrong since `open`, as of now."""
        now_s = time.monotonic()
        silent_s = now_s - self._heard_s if self._open else 0.0
        alarms = []
        if silent_s > self._alarm_after_s:
            why = self._why_silent and f": {self._why_silent}"
            alarms.append(f"No frame on {self.stream!r} for {silent_s:.0f} s{why}.")
        if self._last_problem and now_s - self._problem_s < ALARM_LASTS_S:
            alarms.append(f"{self.stream!r}: {self._last_problem}.")
        last = self._last_problem or self._why_silent
        return SourceProblems(**self._counts, silent_s=silent_s, last_problem=last, alarms=tuple(alarms))

    @abstractmethod
    def _connect(self) -> None:
        """Begin to listen."""

    @abstractmethod
    def _receive(self, timeout_s: float) -> Sequence[FrameBlock]:
        """The frames of the next message, a block a run; waits for one at most `timeout_s`, and gives none without one.

        Raises:
            Malformed: it cannot be understood.
        """

    def _fill(self, until_s: float) -> None:
        """Wait until a block with frames is there, past messages that hold none."""
        left_s = until_s - time.monotonic()
        while True:
            self._take(max(left_s, 0.0))
            left_s = until_s - time.monotonic()
            if self._waiting or left_s <= 0:
                return

    def _take(self, timeout_s: float) -> None:
        """Put the next message's frames to those that wait; a message may have none."""
        try:
            blocks = [block for block in self._receive(timeout_s) if len(block)]
        except Malformed as exc:
            self._problem("malformed_messages", 1, f"a message is refused: {exc}")
            return
        except _UNFORESEEN as exc:
            # No message is worth the stage, with all that waits in its queues.
            self._problem("malformed_messages", 1, f"a message cannot be decoded: {exc!r}")
            return
        if blocks:
            self._heard_s, self._why_silent = time.monotonic(), ""
            self._silence.worked("frames on %r again", self.stream)
            self._waiting.extend(blocks)

    def _joined(self, block: FrameBlock, max_frames: int) -> FrameBlock:
        """`block` with the small blocks of its run that have come already, up to about `max_frames`."""
        parts, frames = [block], len(block)
        while frames < max_frames:
            if not self._waiting:
                self._take(0.0)
            if not self._waiting:
                break
            if self._waiting[0].run_number != block.run_number or len(self._waiting[0]) >= JOIN_BELOW_FRAMES:
                break
            parts.append(self._waiting.popleft())
            frames += len(parts[-1])
        if len(parts) == 1:
            return block
        return FrameBlock(
            run_number=block.run_number,
            pulse_id_N=np.concatenate([part.pulse_id_N for part in parts]),
            counts_NCE=np.concatenate([part.counts_NCE for part in parts]),
            flags_N=np.concatenate([part.flags_N for part in parts]),
        )

    def _nothing(self) -> FrameBlock:
        if time.monotonic() - self._heard_s > self._alarm_after_s:
            self._silence.failed("no frame on %r for %.0f s", self.stream, time.monotonic() - self._heard_s)
        return FrameBlock(
            run_number=0,
            pulse_id_N=np.zeros(0, np.uint64),
            counts_NCE=np.zeros((0, *self.frame_shape), np.uint8),
            flags_N=np.zeros(0, np.uint8),
        )

    def _problem(self, kind: str, count: int, what: str) -> None:
        """Count it, keep it for `problems`, and say it at most every 30 s."""
        what = what[:_MOST_CHARACTERS]
        self._counts[kind] += count
        self._last_problem, self._problem_s = what, time.monotonic()
        self._trouble.failed("%s: %s (%d so far)", self.stream, what, self._counts[kind])

    def _block(self, run_number: int, pulse_id_N: npt.NDArray[np.uint64], raw_NCE: npt.NDArray[Any]) -> FrameBlock:
        """Frames with counts as they came; those that are no counts are `BAD`, all of them for a wrong shape or type."""
        if raw_NCE.shape[1:] != self.frame_shape:
            shape = tuple(map(int, raw_NCE.shape[1:]))
            return self._bad_block(run_number, pulse_id_N, f"frames of {shape}, not of {self.frame_shape}")
        if raw_NCE.dtype.kind not in "uif":
            return self._bad_block(run_number, pulse_id_N, f"frames of {raw_NCE.dtype}, which are no counts")
        counts_NCE, flags_N = checked_counts(raw_NCE)
        return self._sound_or_bad(run_number, pulse_id_N, counts_NCE, flags_N)

    def _sound_or_bad(
        self,
        run_number: int,
        pulse_id_N: npt.NDArray[np.uint64],
        counts_NCE: npt.NDArray[np.uint8],
        flags_N: npt.NDArray[np.uint8],
    ) -> FrameBlock:
        """The block, with its frames that are `BAD` counted."""
        if bad := int(np.count_nonzero(flags_N & BAD)):
            self._problem(
                "bad_frames",
                bad,
                f"{bad} of {counted(len(flags_N), 'frame')} {'holds' if bad == 1 else 'hold'} what is no count",
            )
        return FrameBlock(run_number=run_number, pulse_id_N=pulse_id_N, counts_NCE=counts_NCE, flags_N=flags_N)

    def _bad_block(self, run_number: int, pulse_id_N: npt.NDArray[np.uint64], what: str) -> FrameBlock:
        """Frames whose numbers are known and whose counts are not; they take no memory."""
        self._problem("bad_frames", len(pulse_id_N), what)
        return FrameBlock(
            run_number=run_number,
            pulse_id_N=pulse_id_N,
            counts_NCE=np.broadcast_to(np.uint8(0), (len(pulse_id_N), *self.frame_shape)),
            flags_N=np.full(len(pulse_id_N), BAD, np.uint8),
        )
