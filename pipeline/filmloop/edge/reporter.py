"""A thread of its own for the small files: the status goes out and seal requests come in, whatever the disk does."""

from __future__ import annotations

import logging
import os
import threading
import time

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.clock import utc_now
from filmloop.core.log import Limited
from filmloop.edge.control import pending_requests
from filmloop.edge.gauges import Gauges
from filmloop.edge.stager import Stager
from filmloop.edge.status import EdgeStatus, State, write_status
from filmloop.edge.tally import add

_log = logging.getLogger(__name__)

_POLL_S = 0.05


class Reporter(threading.Thread):
    """Writes the status file and passes seal requests on to the stager, behind all batches taken in before.

    Args:
        config: The site.
        home: Its state folder.
        stream: Name of the stream.
        gauges: What it reports.
        stager: Who seals.
    """

    def __init__(self, *, config: SiteConfig, home: Home, stream: str, gauges: Gauges, stager: Stager) -> None:
        super().__init__(name="reporter", daemon=True)
        self._config, self._home, self._stream = config, home, stream
        self._gauges, self._stager = gauges, stager
        self._started_utc = utc_now()
        self._done = threading.Event()
        self._trouble = Limited(_log)

    def run(self) -> None:
        """The thread: until `finish`."""
        next_s = 0.0
        while not self._done.wait(_POLL_S):
            self._pass_requests()
            if time.monotonic() >= next_s:
                self.write("drained" if self._gauges.drained else "running")
                next_s = time.monotonic() + self._config.edge.status_every_s

    def finish(self) -> None:
        """End the thread and write the last status."""
        self._done.set()
        if self.ident is not None:
            self.join(timeout=1.0)
        self.write("stopped")

    def write(self, state: State) -> None:
        """Write the status now; a disk that refuses is no reason to stop."""
        try:
            write_status(self._home, self.status(state))
        except OSError as exc:
            self._trouble.failed("the status cannot be written: %s", exc)
        else:
            self._trouble.worked("the status is written again")

    def status(self, state: State) -> EdgeStatus:
        """The state of the edge now."""
        gauges = self._gauges
        p50_ms, p99_ms = gauges.latency_ms()
        return EdgeStatus(
            **add(gauges.taken, self._stager.kept).model_dump(),
            pid=os.getpid(),
            state=state,
            started_utc=self._started_utc,
            updated_utc=utc_now(),
            site=self._config.site,
            stream=self._stream,
            frames_open=gauges.frames_open,
            queue_blocks=self._stager.waiting,
            rate_hz=round(gauges.rate_hz(), 1) if state == "running" else 0.0,
            latency_p50_ms=round(p50_ms, 3),
            latency_p99_ms=round(p99_ms, 3),
            runtime=gauges.runtime,
            version=gauges.version,
            version_since_utc=gauges.version_since_utc,
            swaps=gauges.swaps,
            swaps_refused=gauges.swaps_refused,
            quality=gauges.quality,
            last_problem=gauges.last_problem,
            last_problem_utc=gauges.last_problem_utc,
        )

    def _pass_requests(self) -> None:
        try:
            found = pending_requests(self._home)
        except OSError as exc:
            self._gauges.problem(f"seal requests cannot be read: {exc}")
            return
        for request in self._gauges.new_requests(found):
            if not self._stager.put(request):
                self._gauges.answered(request)
