"""What the threads of one edge tell the reporter: single values, each written by one thread and read by another."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from filmloop.core.clock import utc_now
from filmloop.core.documents import Accounting
from filmloop.edge.status import Quality

_log = logging.getLogger(__name__)

_RATE_WINDOW_S = 3.0
# At 400 batches a second this is the last 5 s; sorting it for a percentile takes 0.1 ms.
_LATENCY_BATCHES = 2048


class Gauges:
    """The numbers behind a status.

    Attributes:
        taken: What became of the frames before staging; the inference loop writes it.
        frames_open: Frames in the open shard.
        runtime: What runs the network.
        version: Live version, '' without one.
        version_since_utc: Since when.
        swaps: How often the live version changed in this life.
        swaps_refused: Versions that were offered and not fit to be loaded.
        quality: The newest quality.
        drained: Whether the data have ended.
        last_problem: The newest trouble, in words.
        last_problem_utc: When it was.
    """

    def __init__(self, taken: Accounting) -> None:
        self.taken = taken
        self.frames_open = 0
        self.runtime = self.version = self.version_since_utc = ""
        self.swaps = self.swaps_refused = 0
        self.quality: Quality | None = None
        self.drained = False
        self.last_problem = self.last_problem_utc = ""
        self._latency_s: deque[float] = deque(maxlen=_LATENCY_BATCHES)
        self._rate: deque[tuple[float, int]] = deque([(time.monotonic(), taken.frames_in)])
        self._asked: set[Path] = set()
        self._lock = threading.Lock()

    def problem(self, text: str) -> None:
        """Something is wrong that does not stop the edge."""
        if text != self.last_problem:
            _log.debug("problem: %s", text)
        self.last_problem, self.last_problem_utc = text, utc_now()

    def live(self, version: str, runtime: str) -> None:
        """These weights are live from now on."""
        self.version, self.runtime, self.version_since_utc = version, runtime, utc_now()
        self.quality = None

    def latency(self, seconds: float) -> None:
        """One batch took this long from its arrival to its result."""
        self._latency_s.append(seconds)

    def latency_ms(self) -> tuple[float, float]:
        """Median and 99th percentile of the newest batches; zeros without any."""
        newest = np.array(self._latency_s.copy())
        if not len(newest):
            return 0.0, 0.0
        p50, p99 = np.percentile(newest, (50, 99)) * 1e3
        return float(p50), float(p99)

    def rate_hz(self) -> float:
        """Frames in a second, since the call about three seconds ago."""
        now_s, frames = time.monotonic(), self.taken.frames_in
        self._rate.append((now_s, frames))
        while len(self._rate) > 2 and now_s - self._rate[1][0] >= _RATE_WINDOW_S:
            self._rate.popleft()
        since_s, since_frames = self._rate[0]
        return (frames - since_frames) / max(now_s - since_s, 1e-9)

    def new_requests(self, found: Iterable[Path]) -> list[Path]:
        """Those of `found` that are not being worked on; they count as such from now on."""
        with self._lock:
            new = [path for path in found if path not in self._asked]
            self._asked.update(new)
        return new

    def answered(self, request: Path) -> None:
        """Nobody works on `request` any more."""
        with self._lock:
            self._asked.discard(request)
