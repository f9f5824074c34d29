"""What a stage has to say in words: its newest trouble, the version it serves. On its board, for whoever writes the status."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from filmloop.core.clock import utc_now
from filmloop.core.errors import FilmloopError
from filmloop.edge.cells import Board

_log = logging.getLogger(__name__)

_EVERY_S = 0.05
_MOST_CHARACTERS = 1000


class News:
    """The fields of one board. Any thread of the stage may speak; its loop publishes.

    Args:
        board: Where it goes; what a former life of the stage said there stays until it is said anew.
    """

    def __init__(self, board: Board) -> None:
        self._board, self._lock = board, threading.RLock()
        self._fields: dict[str, Any] = {**board.read(), "fatal": None}
        self._changed, self._published_s = True, 0.0

    def say(self, **fields: Any) -> None:
        """Replace these fields."""
        with self._lock:
            self._fields.update(fields)
            self._changed = True

    def more(self, field: str) -> None:
        """One more of what `field` counts."""
        with self._lock:
            self.say(**{field: int(self._fields.get(field, 0)) + 1})

    def problem(self, text: str) -> None:
        """Something is wrong that does not stop the edge."""
        text, now_utc = text[:_MOST_CHARACTERS], utc_now()
        if text != self._fields.get("problem"):
            _log.debug("problem: %s", text)
            self.say(problem_since_utc=now_utc)
        self.say(problem=text, problem_utc=now_utc)

    def fatal(self, exc: FilmloopError) -> None:
        """The stage ends with this error, and so does the edge."""
        told = exc.as_dict()
        self.say(fatal={**told, "message": exc.message[:_MOST_CHARACTERS], "hint": exc.hint[:_MOST_CHARACTERS]})
        self.publish(at_once=True)

    def publish(self, *, at_once: bool = False) -> None:
        """Write the board if anything is new, at most twenty times a second."""
        now_s = time.monotonic()
        if not self._changed or (now_s - self._published_s < _EVERY_S and not at_once):
            return
        with self._lock:
            self._changed, self._published_s = False, now_s
            self._write()

    def _write(self) -> None:
        """All of it; if that is too much for a board, without the longest words. A stage must not die of its news."""
        fields = dict(self._fields)
        while True:
            try:
                self._board.write(fields)
                return
            except ValueError:
                longest = max(fields, key=lambda name: (name != "fatal", len(json.dumps(fields[name]))))
                del fields[longest]
