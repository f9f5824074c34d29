"""Requests of one thread, sent again and again while the service is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.moving.thread import OverdueError
from filmloop.core.errors import TransientError
from filmloop.core.log import Limited

_LONGEST_PAUSE_S = 60.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Ask(Protocol):
    """Sends a request, again and again while the service is away for a while."""

    def __call__(self, send: Callable[[Transfer], T]) -> T:
        """The answer."""


class Patience:
    """Asks Transfer, which is opened with the first request.

    Args:
        open_transfer: Opens it for the calling thread.
        pause: Waits; raises when the move is to stop.
        keep_on: Raises when the move is to stop.
        first_s: Pause after the first refusal; the next ones are twice as long, a minute at most.
        give_up_s: So long the service may be away.
        tell: Called with what is waited for.
    """

    def __init__(
        self,
        open_transfer: Callable[[], Transfer],
        *,
        pause: Callable[[float], None],
        keep_on: Callable[[], None],
        first_s: float,
        give_up_s: float,
        tell: Callable[[str], None],
    ) -> None:
        self._open, self._pause, self._keep_on, self._tell = open_transfer, pause, keep_on, tell
        self._first_s, self._give_up_s = first_s, give_up_s
        self._transfer: Transfer | None = None
        self._trouble = Limited(_log)

    def ask(self, send: Callable[[Transfer], T]) -> T:
        """The answer.

        Raises:
            TransientError: the service was away for too long.
            FilmloopError: it refuses.
        """
        pause_s, end_s = self._first_s, time.monotonic() + self._give_up_s
        while True:
            self._keep_on()
            try:
                answer = send(self.transfer())
            except TransientError as exc:
                if isinstance(exc, OverdueError) or time.monotonic() > end_s:
                    raise
                self.wait_for(exc.message)
            else:
                self._trouble.worked("Globus answers again")
                return answer
            self._pause(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def wait_for(self, why: str) -> None:
        """Tell that the service is waited for, and why."""
        self._tell(why)
        self._trouble.failed("waiting for Globus: %s", why)

    def unanswered(self, how: str) -> None:
        """Tell that no answer came, before the SDK itself asks again."""
        self.wait_for(f"Globus does not answer ({how}).")

    def transfer(self) -> Transfer:
        """Transfer itself, for requests that are sent once."""
        if self._transfer is None:
            self._transfer = self._open()
        return self._transfer

    def close(self) -> None:
        """Let go of the connection."""
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
