"""Puts together what the stages say of themselves, and writes it where everybody may read it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.documents import Accounting
from filmloop.core.log import Limited
from filmloop.edge.metrics import write_metrics
from filmloop.edge.ring import PLACES, SEATS, UNSTAGED, FrameRing
from filmloop.edge.status import EdgeStatus, State, write_status
from filmloop.edge.supervisor import Supervisor
from filmloop.edge.tally import NO_MODEL, PASSED, STOPPED, add_reasons

_log = logging.getLogger(__name__)

_RATE_WINDOW_S = 3.0
_SWAP_S = 0.05
"""A swap is told at once, whoever waits for it; the rest every `edge.status_every_s`."""

_STILL_S = 60.0
"""A problem that was told within so long of the newest one is taken to last."""

_SAID = ("latency_p50_ms", "latency_p99_ms", "latency_p999_ms", "runtime", "version", "version_since_utc", "choice", "quality",
         "input", "drift")  # fmt: skip
_COUNTED = ("swaps", "swaps_refused")


def accounting_of(ring: FrameRing) -> Accounting:
    """What became of every frame so far, by the stages' own counts."""
    # From the back: frames move on meanwhile, and none may seem to come out that never went in.
    staging, inference, source = ring.staging.read(), ring.inference.read(), ring.source.read()
    passed = {reason: source[reason] for reason in PASSED}
    return Accounting(
        frames_in=source["frames_in"],
        frames_inferred=inference["inferred"],
        frames_staged=staging["sealed"],
        frames_dropped=add_reasons(passed, {NO_MODEL: inference["no_model"], STOPPED: inference["stopped"]}),
        frames_unstaged=add_reasons(passed, {reason: staging[reason] for reason in UNSTAGED}),
        frames_missing=source["missing"],
        frames_out_of_order=source["out_of_order"],
    )


def _said_of_inference(boards: Mapping[str, Mapping[str, Any]], serving: str) -> dict[str, Any]:
    """What the seat that serves says of itself, and what both have counted."""
    said = {name: boards[serving][name] for name in _SAID if boards[serving].get(name) is not None}
    latency: Counter[str] = Counter()
    for seat in SEATS:
        latency.update(boards[seat].get("latency_counts") or {})
    counted = {name: sum(boards[seat].get(name) or 0 for seat in SEATS) for name in _COUNTED}
    return {**said, **counted, "latency_counts": dict(latency)}


class Reporter(threading.Thread):
    """Writes the status and the metrics; a thread, so that a disk that hangs does not keep the supervisor waiting.

    Args:
        config: The site.
        home: Its state folder.
        stream: Name of the stream.
        ring: What it reports on.
        supervisor: Who starts stages anew.
    """

    def __init__(self, *, config: SiteConfig, home: Home, stream: str, ring: FrameRing, supervisor: Supervisor) -> None:
        super().__init__(name="reporter", daemon=True)
        self._config, self._home, self._stream = config, home, stream
        self._ring, self._supervisor = ring, supervisor
        self._started_utc = utc_now()
        self._rate: deque[tuple[float, int]] = deque([(time.monotonic(), ring.source.get("frames_in"))])
        self._done = threading.Event()
        self._trouble = Limited(_log)

    def run(self) -> None:
        """The thread: until `finish`."""
        every_s = self._config.edge.status_every_s
        told, next_s = None, time.monotonic() + every_s
        while not self._done.wait(min(every_s, _SWAP_S)):
            version = self._ring.boards[self._ring.serving].read().get("version")
            if version != told or time.monotonic() >= next_s:
                told, next_s = version, time.monotonic() + every_s
                self.write(self._state())

    def finish(self) -> None:
        """End the thread and write the last status."""
        self._done.set()
        if self.ident is not None:
            self.join(timeout=1.0)
        self.write("stopped")

    def write(self, state: State) -> None:
        """Write the status now; a disk that refuses is no reason to stop."""
        status = self.status(state)
        try:
            write_status(self._home, status)
            write_metrics(self._home, status)
        except OSError as exc:
            self._trouble.failed("the status cannot be written: %s", exc)
        else:
            self._trouble.worked("the status is written again")

    def _state(self) -> State:
        if not all(self._ring.beats[PLACES.index(place)] for place in ("source", self._ring.serving, "staging")):
            return "starting"
        return "drained" if self._ring.source.get("drained") else "running"

    def status(self, state: State) -> EdgeStatus:
        """The state of the edge now."""
        ring = self._ring
        serving, boards = self._read()
        said = _said_of_inference(boards, serving)
        problem, problem_utc = self._problem(boards)
        return EdgeStatus(
            **accounting_of(ring).model_dump(),
            **said,
            pid=os.getpid(),
            state=state,
            started_utc=self._started_utc,
            updated_utc=utc_now(),
            site=self._config.site,
            stream=self._stream,
            frames_open=ring.staging.get("open_frames"),
            frames_waiting=ring.source.get("head") - ring.staging.get("taken"),
            rate_hz=round(self._rate_hz(), 1) if state == "running" else 0.0,
            source=boards["source"].get("source"),
            stages=self._supervisor.pids(),
            restarts=dict(self._supervisor.restarts),
            last_problem=problem,
            last_problem_utc=problem_utc,
        )

    def _read(self) -> tuple[str, dict[str, dict[str, Any]]]:
        """Who serves, and every page: of one moment."""
        while True:
            serving = self._ring.serving
            boards = {place: self._ring.boards[place].read() for place in PLACES}
            if self._ring.serving == serving:
                return serving, boards

    def _problem(self, boards: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
        """The one to tell of: of those that are told still the one that began last, so that none hides behind an older one.

        Returns:
            It, and when it was told last.
        """
        death, death_utc = self._supervisor.problem, self._supervisor.problem_utc
        told = [(death_utc, death_utc, death)] if death else []
        for board in boards.values():
            if board.get("problem"):
                last_utc = board["problem_utc"]
                told.append((board.get("problem_since_utc") or last_utc, last_utc, board["problem"]))
        if not told:
            return "", ""
        newest_s = max(epoch_s(last_utc) for _, last_utc, _ in told)
        still = [each for each in told if newest_s - epoch_s(each[1]) < _STILL_S]
        _, last_utc, problem = max(still)
        return problem, last_utc

    def _rate_hz(self) -> float:
        """Frames in a second, since about three seconds ago."""
        now_s, frames = time.monotonic(), self._ring.source.get("frames_in")
        self._rate.append((now_s, frames))
        while len(self._rate) > 2 and now_s - self._rate[1][0] >= _RATE_WINDOW_S:
            self._rate.popleft()
        since_s, since_frames = self._rate[0]
        return (frames - since_frames) / max(now_s - since_s, 1e-9)
