"""`filmloop drift watch`: waits beside the edge for a drift that needs training, and begins a cycle at once."""

from __future__ import annotations

import logging
import threading
import time

from filmloop.bootstrap import Site, Tell
from filmloop.core.documents import CycleReport
from filmloop.core.errors import FilmloopError
from filmloop.core.log import Limited
from filmloop.local_loop import drift_seen, retrain_once

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class Watch:
    """One cycle for every alarm, and another one whenever `drift.rest_s` have passed and it lasts.

    A cycle that fails for a while is tried again after the same rest.

    Args:
        site: Its edge is the one that is watched.
        tell: Called with (step, text).
    """

    def __init__(self, site: Site, tell: Tell) -> None:
        self._site, self._tell = site, tell
        self._last: tuple[str, str] = ("", "")
        self._again_s = 0.0
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
            return None
        alarm = (seen.version, seen.alarm_since_utc)
        if alarm == self._last and time.monotonic() < self._again_s:
            return None
        self._tell("drift", seen.in_words())
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
        self._again_s = time.monotonic() + self._site.config.drift.rest_s
        return report
