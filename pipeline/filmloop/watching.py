"""`filmloop drift watch`: waits beside the edge for a drift that needs training, and begins a cycle at once."""

from __future__ import annotations

import logging
import threading
import time

from filmloop.bootstrap import Site, Tell, open_ledger
from filmloop.core.clock import epoch_s
from filmloop.core.counted import counted
from filmloop.core.documents import CycleReport
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.log import Limited
from filmloop.edge.status import read_status
from filmloop.local_loop import drift_seen, fresh_frames, retrain_once

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_BUSY_S = 10.0
"""Another cycle runs, which may know nothing of the drift yet: so long until the next try."""


class Watch:
    """One cycle for every alarm, and another one whenever `drift.rest_s` have passed and it lasts.

    A cycle that fails for a while is tried again after the same rest. The rest outlives a restart: it counts from the end of
    the newest cycle in the journal, if that began after the alarm. What another cycle stood in the way of has no rest, and
    no cycle begins before there are frames enough for it: it would find nothing to do, and the drift would last that rest.

    Args:
        site: Its edge is the one that is watched.
        tell: Called with (step, text).
    """

    def __init__(self, site: Site, tell: Tell) -> None:
        self._site, self._tell = site, tell
        self._last: tuple[str, str] = ("", "")
        self._again_s, self._was_busy, self._waits = 0.0, False, False
        self._trouble = Limited(_log)

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set; a cycle under way is finished first.

        Raises:
            FilmloopError: a cycle failed in a way that another try does not mend.
        """
        while not stop.wait(_LOOK_EVERY_S):
            self.look()

    def look(self) -> CycleReport | None:
        """Look once; the report of the cycle, if one was begun.

        Raises:
            FilmloopError: see `run`.
        """
        seen = drift_seen(self._site)
        if seen is None or not seen.needs_training:
            self._waits = False
            return None
        alarm = (seen.version, seen.alarm_since_utc)
        if not any(self._last) and (rest_s := self._left_to_rest_s(seen.alarm_since_utc)) > 0:
            self._last, self._again_s = alarm, time.monotonic() + rest_s
        if alarm == self._last and time.monotonic() < self._again_s:
            return None
        if not self._waits and (alarm != self._last or not self._was_busy):
            self._tell("drift", seen.in_words())
        if missing := self._missing_frames():
            if not self._waits:
                self._tell("frames", f"a cycle begins with {counted(missing, 'more fresh frame')}")
            self._waits = True
            return None
        self._waits = False
        self._last, self._again_s = alarm, time.monotonic() + self._site.config.drift.rest_s
        try:
            report = retrain_once(self._site, with_edge=False, tell=self._tell)
        except FilmloopError as exc:
            if not exc.retryable:
                raise
            self._trouble.failed("the cycle did not get through, it is taken up again later: %s %s", exc, exc.hint)
            return None
        self._trouble.worked("cycles get through again")
        # However long the cycle took: the rest begins at its end, and the alarm is that of the version before it.
        rest_s, self._was_busy = self._site.config.drift.rest_s, report.outcome == "busy"
        self._again_s = time.monotonic() + (min(rest_s, _BUSY_S) if self._was_busy else rest_s)
        return report

    def _missing_frames(self) -> int:
        """Fresh frames that a new cycle would lack; one that was cut off has its own."""
        status = read_status(self._site.home)
        with open_ledger(self._site, read_only=True) as ledger:
            if ledger.open_cycle() is not None:
                return 0
            have = fresh_frames(self._site, ledger) + (status.frames_open if status else 0)
        return max(0, self._site.config.training.min_frames - have)

    def _left_to_rest_s(self, alarm_since_utc: str) -> float:
        """Of a rest that a former process began; 0 if there is none, or the clock was set back."""
        try:
            with open_ledger(self._site, read_only=True) as ledger:
                newest = ledger.history(1)
        except TransientError:
            return 0.0
        if not newest or not newest[0].finished_utc or epoch_s(newest[0].started_utc) < epoch_s(alarm_since_utc):
            return 0.0
        ago_s = time.time() - epoch_s(newest[0].finished_utc)
        return self._site.config.drift.rest_s - ago_s if ago_s >= 0 else 0.0
