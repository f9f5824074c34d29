"""Keeps the stages going: starts them, notices that one died or hangs, starts it anew, stops them in order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from filmloop.core.clock import utc_now
from filmloop.edge.hosts import Host
from filmloop.edge.ring import PLACES, ROLES, SEATS, STANDBY, FrameRing

_log = logging.getLogger(__name__)

POLL_S = 0.02
_AGAIN_FIRST_S, _AGAIN_CAP_S = 0.25, 30.0
"""Pauses before a start, while the stage keeps dying before its first beat; one that came up starts again at once. Whoever
stands by always pauses: what it dies of may be the version that it prepares."""
_LONG_LIFE_S = 60.0
"""Whoever stood by for so long has not died of what it began with."""
_START_S = 120.0
"""A stage may take so long until its first beat: it imports, recovers, loads weights."""
_STANDBY_S = 60.0
"""Whoever stands by gives way, and nobody waits for it: so long may it show no life, and five times as long to come up."""
_LEAVE_S = 0.3
"""Whoever stands by when everything is inferred has nothing to finish."""
_BEGIN_S = 30.0
"""The source waits at most so long for the others to come up: frames without a model are staged all the same."""
_URGENT_S = 1.0
"""Staging never waits for anything: if a live source finds no room and staging shows no life for so long, it hangs."""
_MOST_PATIENCE = 8.0
"""So many times `stall_after_s` at most: stalls that are weeks apart must not add up to an hour in which nobody looks."""
_FINISH_S = 3.0
"""Longest that inference, staging and the last seal may take after a stop; with everything else it stays below 5 s."""


class Supervisor:
    """Runs the stages on one ring until all have done their work.

    Args:
        ring: The ring.
        hosts: One a place that is taken.
        stall_after_s: A stage in a process that shows no life for so long is ended and started anew.
        live: Whether the source does not wait.

    Attributes:
        restarts: How often each stage was started anew.
        problem, problem_utc: The newest death of a stage, in words.
    """

    def __init__(self, ring: FrameRing, hosts: Sequence[Host], *, stall_after_s: float, live: bool = False) -> None:
        self.restarts = dict.fromkeys((*ROLES, STANDBY) if len(hosts) > len(ROLES) else ROLES, 0)
        self.problem = self.problem_utc = ""
        self._ring, self._hosts, self._stall_after_s, self._live = ring, list(hosts), stall_after_s, live
        self._cells = {"source": ring.source, **dict.fromkeys(SEATS, ring.inference), "staging": ring.staging}
        self._started_s = dict.fromkeys(PLACES, 0.0)
        self._again_at_s: dict[str, float] = {}
        self._pause_s = dict.fromkeys(PLACES, 0.0)
        # A batch of a large network may rightly take long: whoever was ended for it gets twice the time.
        self._patience = dict.fromkeys(ROLES, 1.0)
        self._all_inferred_s = float("inf")

    def run(self, stop: threading.Event) -> None:
        """Start all stages; return when the data have ended or `stop` was set, and the last frame is accounted for.

        Raises:
            FilmloopError: a stage cannot go on; the others have ended in order before that.
        """
        try:
            self._run(stop)
        finally:
            for host in self._hosts:
                host.kill()
            self._close_books()

    def _run(self, stop: threading.Event) -> None:
        waiting = [host for host in self._hosts if host.place == "source" or self._stands_by(host)]
        for host in self._hosts:
            if host not in waiting:
                self._start(host)
        failure: BaseException | None = None
        overdue_s = float("inf")
        while not all(self._has_ended(host) for host in self._hosts):
            now_s = time.monotonic()
            if (stop.is_set() or failure is not None) and not self._ring.control.get("stop"):
                self._tell(stop=1, hurry=0)
                overdue_s = now_s + _FINISH_S
                for host in self._hosts:
                    if self._stands_by(host) and not self._is_up(host.place):
                        host.kill()  # nobody waits until it has come up
                if failure is None and not self._ring.source.get("head"):
                    waiting.clear()
                    self._drop_unborn()
            if now_s >= overdue_s and not self._ring.control.get("hurry"):
                self._tell(stop=1, hurry=1)
            if now_s >= overdue_s + _FINISH_S / 2:
                _log.error("a stage does not end: left behind, a restart continues after the last sealed shard")
                break
            for host in [host for host in waiting if self._may_begin(host, failure)]:
                waiting.remove(host)
                self._start(host)
            for host in self._hosts:
                if host not in waiting:
                    failure = self._look_after(host, now_s, failure)
            if failure is not None:
                self._write_off()
            time.sleep(POLL_S) if stop.is_set() else stop.wait(POLL_S)
        if failure is not None:
            raise failure

    def _may_begin(self, host: Host, failure: BaseException | None) -> bool:
        """Whether one that waits may: a live source should not deliver before somebody is there to take its frames.

        Whoever stands by has time: it begins when frames come, and not any more at a stop.
        """
        over = failure is not None or self._ring.control.get("stop") != 0
        if self._stands_by(host):
            return not over and self._is_up("source")
        needed = [each.place for each in self._hosts if each.place != "source" and not self._stands_by(each)]
        waited_s = time.monotonic() - min((self._started_s[place] for place in needed), default=0.0)
        return all(map(self._is_up, needed)) or waited_s > _BEGIN_S or over

    def _is_up(self, place: str) -> bool:
        return bool(self._ring.beats[PLACES.index(place)])

    def _stands_by(self, host: Host) -> bool:
        return self._ring.role(host.place) == STANDBY

    def pids(self) -> dict[str, int]:
        """Process id of each stage that runs in a process of its own, by what it does just now."""
        roles = self._ring.roles()
        return {roles[host.place]: host.pid for host in self._hosts if host.pid}

    def _look_after(self, host: Host, now_s: float, failure: BaseException | None) -> BaseException | None:
        """Start `host` anew if it died or hangs; returns what makes the edge end."""
        if self._has_ended(host):
            return failure
        if host.is_alive():
            if host.can_restart and (self._hangs(host, now_s) or self._is_left_over(host, now_s)):
                host.kill()
            return failure
        if self._stands_by(host) and self._ring.control.get("stop"):
            return failure
        error = None if self._stands_by(host) else host.failure()
        if error is not None or not host.can_restart:
            return failure or error
        place, role = host.place, self._ring.role(host.place)
        if place not in self._again_at_s:
            self._say(f"{role} {host.how_it_ended()}, started anew")
            self._pause_s[place] = self._pause_before_next(host, now_s)
            self._again_at_s[place] = now_s + self._pause_s[place]
        if now_s >= self._again_at_s[place]:
            del self._again_at_s[place]
            self.restarts[role] += 1
            self._start(host)
        return failure

    def _pause_before_next(self, host: Host, now_s: float) -> float:
        before_s = self._pause_s[host.place]
        if self._is_up(host.place):
            if not self._stands_by(host):
                return 0.0
            if now_s - self._started_s[host.place] > _LONG_LIFE_S:
                before_s = 0.0
        return min(max(2 * before_s, _AGAIN_FIRST_S), _AGAIN_CAP_S)

    def _is_left_over(self, host: Host, now_s: float) -> bool:
        """Whether it stands by though everything is inferred, and has had time to notice."""
        if not self._stands_by(host) or not self._ring.inference.get("ended"):
            return False
        self._all_inferred_s = min(self._all_inferred_s, now_s)
        return now_s - self._all_inferred_s > _LEAVE_S

    def _start(self, host: Host) -> None:
        self._started_s[host.place] = time.monotonic()
        host.start()

    def _has_ended(self, host: Host) -> bool:
        """Whether the stage has done all its work, not merely stopped."""
        return self._cells[host.place].get("ended") != 0 and not host.is_alive()

    def _hangs(self, host: Host, now_s: float) -> bool:
        place, role = host.place, self._ring.role(host.place)
        beat_ns = int(self._ring.beats[PLACES.index(place)])
        if not beat_ns:
            took_s = now_s - self._started_s[place]
            if took_s <= max(5 * _STANDBY_S if role == STANDBY else _START_S, self._stall_after_s):
                return False
            self._say(f"{role} has not come up in {took_s:.0f} s, ended by force")
            return True
        silent_s = now_s - beat_ns / 1e9
        if role == STANDBY:
            allowed_s = max(_STANDBY_S, self._stall_after_s)
        else:
            allowed_s = self._stall_after_s * self._patience[role]
        if role == "staging" and self._live and self._is_full():
            allowed_s = min(allowed_s, _URGENT_S)
        if silent_s <= allowed_s:
            return False
        if role != STANDBY:
            self._patience[role] = min(2 * self._patience[role], _MOST_PATIENCE)
        self._say(f"{role} shows no life for {silent_s:.1f} s, ended by force")
        return True

    def _is_full(self) -> bool:
        return self._ring.source.get("head") - self._ring.staging.get("taken") >= self._ring.frames

    def _say(self, text: str) -> None:
        self.problem, self.problem_utc = text, utc_now()
        _log.error("%s", text)

    def _tell(self, *, stop: int, hurry: int) -> None:
        self._ring.control.write({"stop": stop, "hurry": hurry})
        for bell in self._ring.bells.values():
            bell.ring()

    def _close_books(self) -> None:
        """Count the frames that stages left behind: nobody else will."""
        head = self._ring.source.get("head")
        inference, staging = self._ring.inference.read(), self._ring.staging.read()
        if inference["done"] < head:
            inference["stopped"] += head - inference["done"]
            self._ring.inference.write({**inference, "done": head, "ended": 1})
        if staging["taken"] < head or staging["appended"] > staging["sealed"]:
            staging["stopped"] += head - staging["taken"]
            staging["staging_killed"] += staging["appended"] - staging["sealed"]
            self._ring.staging.write({**staging, "taken": head, "appended": staging["sealed"], "ended": 1})

    def _drop_unborn(self) -> None:
        """At a stop before the first frame nobody waits for a stage that still imports or was not started yet."""
        for host in self._hosts:
            if host.can_restart and not self._is_up(host.place):
                host.kill()
        self._write_off()

    def _write_off(self) -> None:
        """A stage that is gone for good ends its part no more: those behind it finish what is there."""
        for host in self._hosts:
            if not host.is_alive() and not self._has_ended(host) and not self._stands_by(host):
                cell = self._cells[host.place]
                cell.write({**cell.read(), "ended": 1})
                for bell in self._ring.bells.values():
                    bell.ring()
