"""Waiting that never outlives a deadline of our own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from filmloop.core.errors import TransientError

T = TypeVar("T")
_GROWTH = 1.2
"""A wait is noticed to be over a tenth of its length later, on average."""


def wait_until(
    ready: Callable[[], T | None],
    *,
    deadline_s: float,
    end_s: float | None = None,
    what: str,
    hint: str = "",
    first_s: float = 0.05,
    cap_s: float = 1.0,
    last: Callable[[], str] = str,
) -> T:
    """Poll `ready` with a growing pause until it returns something other than None.

    `end_s` is when the deadline passes, by the monotonic clock, for a wait that others have used up in part.

    Raises:
        TransientError: `deadline_s` seconds passed; `what` names the thing waited for, `last` what was seen of it.
    """
    end, pause_s = time.monotonic() + deadline_s if end_s is None else end_s, first_s
    while True:
        found = ready()
        if found is not None:
            return found
        left_s = end - time.monotonic()
        if left_s <= 0:
            seen = f": {words}" if (words := last()) else "."
            raise TransientError(f"{what} did not happen within {deadline_s:.0f} s{seen}", hint=hint)
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * _GROWTH, cap_s)
