"""Waiting that never outlives a deadline of our own, and repeating what may work the next time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from filmloop.core.errors import FilmloopError, TransientError

T = TypeVar("T")
_log = logging.getLogger(__name__)


def wait_until(
    ready: Callable[[], T | None],
    *,
    deadline_s: float,
    what: str,
    hint: str = "",
    first_s: float = 0.05,
    cap_s: float = 1.0,
) -> T:
    """Poll `ready` with a growing pause until it returns something other than None.

    Raises:
        TransientError: `deadline_s` seconds passed; `what` names the thing waited for.
    """
    end, pause_s = time.monotonic() + deadline_s, first_s
    while True:
        found = ready()
        if found is not None:
            return found
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise TransientError(f"{what} did not happen within {deadline_s:.0f} s.", hint=hint)
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, cap_s)


def retrying(
    call: Callable[[], T], *, attempts: int = 4, first_s: float = 0.5, cap_s: float = 8.0, what: str = ""
) -> T:
    """Call until it works, an error says that retrying is useless, or `attempts` are used up."""
    pause_s = first_s
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except FilmloopError as exc:
            if not exc.retryable or attempt == attempts:
                raise
            _log.warning("%s failed (attempt %d of %d): %s", what or "call", attempt, attempts, exc.message)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, cap_s)
    raise AssertionError("unreachable")
