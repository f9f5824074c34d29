"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], deadline_s: float = 20.0) -> None:
    """Look every few milliseconds; that it does not happen in time is a failure of the test."""
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.002)
