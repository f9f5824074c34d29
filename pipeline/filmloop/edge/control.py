"""Asking a running edge to seal its open shard, or to look for new weights now: files that disappear when it is done."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.config.paths import Home
from filmloop.core.errors import ConfigError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.edge.lock import is_alive

_PREFIX = "seal-"
_LOOK = "look"
_CAP_S = 0.05


def request_seal(home: Home, key: str, deadline_s: float) -> bool:
    """Have the edge seal every frame that it took in before this call; returns False if no edge is alive.

    May be called again with the same `key`, which must be fit for a file name (a cycle id).

    Raises:
        TransientError: an edge is alive and has not sealed within `deadline_s` seconds.
    """
    if not key or "/" in key:
        raise ConfigError(f"{key!r} cannot name a request.", hint="Use an id such as c20261122-130501-9f3a.")
    if not is_alive(home):
        return False
    # A name for each call: the edge may still be busy with one before it, whose frames are not all of this one's.
    path = home.edge_control / f"{_PREFIX}{key}-{uuid.uuid4().hex[:8]}"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def answered() -> bool | None:
        if not path.exists():
            return True
        return None if is_alive(home) else False

    try:
        return wait_until(
            answered,
            deadline_s=deadline_s,
            cap_s=_CAP_S,
            what=f"Sealing the open shard ({path})",
            hint="`filmloop status` shows the edge and its last problem.",
        )
    finally:
        path.unlink(missing_ok=True)


def request_look(home: Home) -> None:
    """Have the edge look at the champion alias now, and not at its next turn. It would find it anyway: nothing is raised."""
    if is_alive(home):
        with suppress(OSError):
            home.edge_control.mkdir(parents=True, exist_ok=True)
            (home.edge_control / _LOOK).touch()


def take_look(home: Home) -> bool:
    """Whether somebody asked for a look since the last call."""
    try:
        (home.edge_control / _LOOK).unlink()
    except OSError:
        return False
    return True


def pending_requests(home: Home) -> Sequence[Path]:
    """The requests that wait, oldest name first."""
    try:
        return sorted(path for path in home.edge_control.iterdir() if path.name.startswith(_PREFIX))
    except FileNotFoundError:
        return []
