"""The edge as a process: runs until somebody asks it to stop, by SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from filmloop.edge.service import EdgeService

_log = logging.getLogger(__name__)


def run_until_signalled(service: EdgeService, *, max_frames: int | None = None) -> int:
    """Run `service` in this, the main, thread; returns the exit code 0 after a clean stop or the end of the data.

    A second signal ends the process at once; what was sealed stays sealed.

    Raises:
        FilmloopError: what `EdgeService.run` raises.
    """
    stop = threading.Event()
    former: dict[signal.Signals, object] = {}

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for name, handler in former.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
        _log.info("%s: sealing the open shard, then stopping", signal.Signals(number).name)
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        former[name] = signal.signal(name, on_signal)
    try:
        accounting = service.run(stop, max_frames=max_frames)
    finally:
        for name, handler in former.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
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
