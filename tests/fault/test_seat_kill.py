"""Both seats of inference are ended by force, again and again, while versions change places: one always serves in the end."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import pytest

from filmloop.bench.running import RunningEdge, bench_site
from filmloop.bench.swap import KeyChecker, phases_of
from filmloop.ports.registry import CHAMPION

KILLS = int(os.environ.get("FILMLOOP_KILLS", "10"))


class Swapping(threading.Thread):
    """Moves the alias to and fro as fast as the edge follows, or after a while where it does not."""

    def __init__(self, edge):
        super().__init__()
        self.edge, self.done = edge, threading.Event()

    def run(self):
        while not self.done.is_set():
            wanted = "2" if self.edge.status().version == "1" else "1"
            self.edge.registry.set_alias(CHAMPION, wanted)
            end_s = time.monotonic() + 3.0
            while self.edge.status().version != wanted and time.monotonic() < end_s and not self.done.wait(0.02):
                pass


def unless_gone(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["inference", "standby"])
def test_kills_of_a_seat_while_versions_change_places_lose_and_mix_nothing(tmp_path, role):
    site = bench_site(
        tmp_path,
        rate_hz=2000.0,
        edge={"watch_every_s": 0.05, "status_every_s": 0.05, "stall_after_s": 5.0},
        staging={"frames_per_shard": 8192},
    )
    edge = RunningEdge(site, tmp_path, seeds=(1, 2), watched=True)
    checker = KeyChecker(site.home.stage, phases_of(edge))
    chance, killed, back_s = random.Random(f"20261130 {role}"), 0, []
    with edge:
        checker.start()
        swapping = Swapping(edge)
        swapping.start()
        try:
            while killed < KILLS:
                time.sleep(chance.uniform(0.2, 2.5))
                pid = edge.wait_for(lambda status: role in status.stages).stages[role]
                begun_s, before = time.monotonic(), edge.status()
                killed += unless_gone(pid)
                edge.wait_for(lambda s, before=before: sum(s.restarts.values()) > sum(before.restarts.values()))
                edge.wait_for(
                    lambda s, before=before: (
                        s.frames_inferred > before.frames_inferred + 500
                        and s.frames_waiting < 2000
                        and len(s.stages) == 4
                    )
                )
                back_s.append(time.monotonic() - begun_s)
            before = edge.status()
            edge.wait_for(lambda status: status.swaps >= before.swaps + 2)
        finally:
            swapping.done.set()
            swapping.join()
        restarts = edge.status().restarts
    checker.finish()
    # A seat may have changed its part between the look and the kill.
    assert {name for name, count in restarts.items() if count} <= {"inference", "standby"}
    assert sum(restarts.values()) == killed == KILLS
    assert restarts[role] >= KILLS // 2
    assert checker.lost(edge.accounting) == 0
    assert edge.accounting.frames_dropped == {}
    assert (checker.mixed, checker.unknown) == (0, 0)
    assert checker.judged > 10_000
    print(f"{role}: {KILLS} kills, all well again after at most {max(back_s):.2f} s", file=sys.stderr)
