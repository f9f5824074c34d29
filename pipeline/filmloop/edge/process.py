"""The edge as a process: runs until somebody asks it to stop, by SIGTERM or Ctrl-C, or its parent is gone."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from filmloop.core.signals import stopped_by_signals
from filmloop.edge.service import EdgeService

_log = logging.getLogger(__name__)


_STDIN = 0


def run_until_signalled(
    service: EdgeService,
    *,
    max_frames: int | None = None,
    tied: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> int:
    """Run `service` in this, the main, thread; returns the exit code 0 after a clean stop or the end of the data.

    A second signal ends the process at once; what was sealed stays sealed. `tied` stops as cleanly when standard input
    closes: the parent holds the other end of that pipe, and the kernel closes it even after a SIGKILL. `begun` is called as by `EdgeService.run`.

    Raises:
        FilmloopError: what `EdgeService.run` raises.
    """
    stop = threading.Event()
    if tied:
        threading.Thread(target=_stop_with_parent, args=(stop,), name="parent-watcher", daemon=True).start()
    with stopped_by_signals(stop, lambda number: _log.info("%s: sealing the open shard, then stopping", number.name)):
        accounting = service.run(stop, max_frames=max_frames, begun=begun)
    _log.info(
        "stopped: %d frames in, %d inferred, %d staged, not inferred %s, not staged %s, %d never delivered",
        accounting.frames_in,
        accounting.frames_inferred,
        accounting.frames_staged,
        accounting.frames_dropped or "none",
        accounting.frames_unstaged or "none",
        accounting.frames_missing,
    )
    return 0


def _stop_with_parent(stop: threading.Event) -> None:
    # Not sys.stdin: a daemon thread inside its lock makes the interpreter abort at exit.
    with suppress(OSError):
        while os.read(_STDIN, 4096):
            pass
    _log.info("the process that started this edge is gone: sealing the open shard, then stopping")
    stop.set()
