"""The first stage: reads the source, checks at the door, puts frames into the ring.

If the ring is full, a source that can wait waits. A live one does not: its frames are read all the same, and counted.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict

import numpy as np

from filmloop.config.schema import EdgeSection
from filmloop.core.counted import counted
from filmloop.core.documents import PulseRange
from filmloop.core.errors import DataError, TransientError
from filmloop.core.log import Limited
from filmloop.core.types import MAX_RUN, FrameBlock
from filmloop.edge.intake import Arrival, Ids, Intake, sound_or_bad
from filmloop.edge.ring import CAME_WITH, FrameRing
from filmloop.edge.stages.base import BEAT_S, Stage
from filmloop.edge.tally import BAD_FRAME, note
from filmloop.ports.source import NO_PROBLEMS, FrameSource, problems_of

_log = logging.getLogger(__name__)

_REOPEN_FIRST_S, _REOPEN_CAP_S = 0.5, 30.0
_DATA_ERRORS = 5
"""So many in a row at one place: the data there will not be better at the sixth try."""

READ_FRAMES = 1024
"""Most frames of one read: enough to make a read cheap, few enough to be in the caches when they are inferred."""


class SourceStage(Stage):
    """Fills the ring.

    Args:
        ring: The ring; its source cell says where an earlier life stood.
        source: Opened and closed by `run`.
        edge: How long frames may wait for each other.
        live: The source does not wait: what finds no room is counted and let go.
        until: Stop once so many frames have come in, since the beginning of the stream; None never.
        stay: At the end of the data, stay until told to stop.
    """

    def __init__(
        self,
        ring: FrameRing,
        source: FrameSource,
        edge: EdgeSection,
        *,
        live: bool,
        until: int | None = None,
        stay: bool = False,
    ) -> None:
        super().__init__("source", ring)
        self._source, self._live, self._until, self._stay = source, live, until, stay
        self._timeout_s, self._problems = BEAT_S, NO_PROBLEMS
        if hasattr(source, "coalesce_s"):
            source.coalesce_s = edge.latency_budget_ms / 2e3
        values = ring.source.read()
        self._head, self._notes = values["head"], values["notes"]
        last = (values["run_number"], values["last_pulse_id"]) if values["run_number"] >= 0 else None
        counts = {name: values[name] for name in CAME_WITH}
        self._intake = Intake(ring.layout.frame_shape, last, counts, self._recent(last))
        self._trouble, self._bad = Limited(_log), Limited(_log)
        self._failed_at: tuple[int, int] | None = None
        self._data_errors = 0

    def run(self) -> None:
        """Work until the data end, the edge is told to stop, or enough frames have come in.

        Raises:
            ConfigError: the source's frames do not have the site's shape.
            DataError: the source has no data to begin with, or none that can be read after a certain frame.
        """
        try:
            if not self.ring.source.get("ended"):
                self._open()
                self._work()
        finally:
            self._source.close()
        self._commit(ended=True)
        self.ring.bells[self.ring.serving].ring()
        self.beat()

    def _work(self) -> None:
        ring = self.ring
        while not self.stopping:
            self.beat()
            taken = ring.staging.get("taken")
            room = ring.frames - (self._head - taken)
            wanted = min(READ_FRAMES, ring.frames - self._head % ring.frames)
            if self._until is not None:
                wanted = min(wanted, self._until - self._intake.counts["frames_in"])
            if wanted <= 0:
                return
            if not room and not self._live:
                self.wait()
                continue
            try:
                block = self._source.read(min(wanted, room) if room else wanted, self._timeout_s)
            except (DataError, TransientError) as exc:
                self._after_bad_read(exc)
                continue
            if block is None:
                self._drained()
                return
            for part in sound_or_bad(block) if len(block) else ():
                self._let_in(part, room=bool(room))
            self._look_at_alarms()

    def _let_in(self, block: FrameBlock, *, room: bool) -> None:
        arrived_ns = time.monotonic_ns()
        if not room:
            self.news.problem("the ring is full: frames are neither inferred nor staged")
            self._pass(self._intake.overflow(block))
        else:
            arrival = self._intake.admit(block)
            self._pass(arrival.passed)
            if len(arrival.block):
                self._put(arrival, arrived_ns)
        self._commit()
        self.ring.bells[self.ring.serving].ring()

    def _put(self, arrival: Arrival, arrived_ns: int) -> None:
        ring, block = self.ring, arrival.block
        places = ring.span(self._head, self._head + len(block))
        ring.counts_FCE[places] = block.counts_NCE
        ring.pulse_id_F[places] = block.pulse_id_N
        ring.run_number_F[places] = block.run_number
        ring.flags_F[places] = block.flags_N
        ring.arrived_ns_F[places] = arrived_ns
        ring.came_with_FK[places] = arrival.came_with_NK
        if ring.label_FCE is not None and block.label_NCE is not None:
            ring.label_FCE[places] = block.label_NCE
        self._head += len(block)

    def _pass(self, passed: tuple[PulseRange, ...]) -> None:
        """Tell staging, for the manifest, which frames are not in the ring; they come before the next one that is."""
        for each in passed:
            self._note(each)
            if each.reason == BAD_FRAME:
                what = f"{counted(each.frames, 'frame')} refused from run {each.run_number}, pulse {each.first_pulse_id} on"
                shape = self.ring.layout.frame_shape
                what += f": damaged, not of the site's shape {shape}, or of a run above {MAX_RUN}"
                self.news.problem(what)
                self._bad.failed("%s", what)
            elif each.reason != "overflow":
                self.news.problem(f"{counted(each.frames, 'frame')} came too late, from pulse {each.first_pulse_id} on")

    def _note(self, passed: PulseRange) -> None:
        """What passes in a row for one reason is one note: staging reads none before the frame that comes next."""
        if self._notes:
            at, last = self.ring.read_note(self._notes - 1)
            if (at, last.reason, last.run_number) == (self._head, passed.reason, passed.run_number):
                ranges = [last]
                note(ranges, passed)
                self.ring.write_note(self._notes - 1, at, ranges[0])
                return
        self.ring.write_note(self._notes, self._head, passed)
        self._notes += 1

    def _commit(self, *, ended: bool = False) -> None:
        run_number, last_pulse_id = self._intake.last or (-1, 0)
        self.ring.source.write(
            {
                "head": self._head, "notes": self._notes, "run_number": run_number, "last_pulse_id": last_pulse_id,
                "ended": ended, "drained": self.ring.source.get("drained"), **self._intake.counts,
            }
        )  # fmt: skip

    def _drained(self) -> None:
        """The data have ended: leave, or stay until told to stop."""
        if self._stay:
            self.ring.source.write({**self.ring.source.read(), "drained": 1})
        while self._stay and not self.stopping:
            self.wait()

    def _look_at_alarms(self) -> None:
        problems = problems_of(self._source)
        if problems == self._problems:
            return
        self._problems = problems
        self.news.say(source=asdict(problems))
        for text in problems.alarms:
            self.news.problem(f"source: {text}")

    def _recent(self, last: tuple[int, int] | None) -> Ids | None:
        """Pulse ids of the newest run that are still in the ring, in order."""
        if last is None or not self._head:
            return None
        ring = self.ring
        # Over free places a former life may have written frames that it did not live to tell of.
        free = ring.frames - (self._head - ring.staging.get("taken"))
        first = max(self._head - ring.frames + min(READ_FRAMES, free), 0)
        held = np.arange(first, self._head) % ring.frames
        recent: Ids = ring.pulse_id_F[held][ring.run_number_F[held] == last[0]]
        return recent

    def _open(self) -> None:
        """Open the source behind the newest frame; one that is away for now is waited for."""
        pause_s = _REOPEN_FIRST_S
        while not self.stopping:
            self.beat()
            try:
                self._source.open(after=self._intake.last)
                return
            except TransientError as exc:
                self.news.problem(f"source: {exc.message}")
                self._trouble.failed("the source cannot be opened: %s %s", exc.message, exc.hint)
                self._pause(pause_s)
                pause_s = min(pause_s * 2, _REOPEN_CAP_S)

    def _after_bad_read(self, exc: DataError | TransientError) -> None:
        """Close the source and open it again behind the last frame, as often as it takes.

        Raises:
            DataError: the data after the last frame are as damaged as at the first try.
        """
        pause_s = _REOPEN_FIRST_S
        self._failed(exc)
        while not self._pause(pause_s):
            try:
                self._source.close()
                self._source.open(after=self._intake.last)
            except (DataError, TransientError) as again:
                self._failed(again)
                pause_s = min(pause_s * 2, _REOPEN_CAP_S)
            else:
                return

    def _failed(self, exc: DataError | TransientError) -> None:
        self.news.problem(f"source: {exc.message}")
        self._trouble.failed("the source failed, opening it again: %s %s", exc.message, exc.hint)
        if isinstance(exc, TransientError):
            return
        self._data_errors = self._data_errors + 1 if self._failed_at == self._intake.last else 1
        self._failed_at = self._intake.last
        if self._data_errors >= _DATA_ERRORS:
            raise exc

    def _pause(self, seconds: float) -> bool:
        """Sleep, alive; says whether the edge was told to stop."""
        end_s = time.monotonic() + seconds
        while not self.stopping and (left_s := end_s - time.monotonic()) > 0:
            self.wait(min(left_s, BEAT_S))
        return self.stopping
