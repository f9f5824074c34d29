"""Time as the documents write it: UTC text for people and machines, seconds for arithmetic."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime


def utc_now() -> str:
    """Now, in UTC, to the millisecond: `2026-11-22T13:05:01.250Z`."""
    return utc_text(datetime.now(UTC).timestamp())


def utc_text(epoch_s: float) -> str:
    """`epoch_s` (seconds since 1970, UTC) as text to the millisecond."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_s(text: str) -> float:
    """Seconds since 1970 of a text that `utc_now` wrote."""
    return datetime.fromisoformat(text).timestamp()


def new_id(prefix: str) -> str:
    """An identifier that sorts by time and is readable in a path: `c20261122-130501-9f3a`."""
    return f"{prefix}{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
