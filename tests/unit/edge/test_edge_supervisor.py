from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from filmloop.core.errors import ConfigError, TransientError
from filmloop.edge import supervisor as supervisor_module
from filmloop.edge.gentle import _may_return_to
from filmloop.edge.hosts import ProcessHost, ThreadHost, error_of
from filmloop.edge.ring import PLACES, ROLES, SEATS, STANDBY, FrameRing, RingLayout
from filmloop.edge.supervisor import Supervisor
from rigs.waiting import until

TINY = Path(__file__).with_name("tiny_stage.py")
ORDER = ("staging", "inference", "source")
WITH_STANDBY = ("staging", *SEATS, "source")


def tiny(role, ring, behaviour):
    spec = importlib.util.spec_from_file_location("tiny_stage", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyStage(role, ring, behaviour)


@pytest.fixture
def ring():
    ring = FrameRing.new(RingLayout(frames=8, frame_shape=(1, 2), labelled=False))
    yield ring
    ring.close()


class Running:
    """A supervisor in a thread, on tiny stages."""

    def __init__(self, ring, hosts, *, stall_after_s=60.0, live=False):
        self.ring, self.hosts, self.stop, self.outcome = ring, hosts, threading.Event(), None
        self.supervisor = Supervisor(ring, hosts, stall_after_s=stall_after_s, live=live)
        self.thread = threading.Thread(target=self._work)

    def _work(self):
        try:
            self.supervisor.run(self.stop)
        except BaseException as exc:
            self.outcome = exc

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        begun_s = time.monotonic()
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.stopped_in_s = time.monotonic() - begun_s
        assert self.stopped_in_s < 5
        for host in self.hosts:
            assert not host.pid, "no process is left behind"

    def lives(self, role):
        return self.ring.boards[role].read().get("lives", 0)


def in_threads(ring, **behaviours):
    return Running(
        ring,
        [ThreadHost(role, lambda role=role: tiny(role, ring, behaviours.get(role, "works"))) for role in ORDER],
    )


def in_processes(ring, stall_after_s=60.0, live=False, **behaviours):
    argv = (sys.executable, str(TINY))
    order = WITH_STANDBY if STANDBY in behaviours else ORDER
    ring.spec.write({SEATS[1] if name == STANDBY else name: told for name, told in behaviours.items()})
    return Running(ring, [ProcessHost(place, ring, argv) for place in order], stall_after_s=stall_after_s, live=live)


def ended(ring):
    return {role for role in ROLES if getattr(ring, role).get("ended")}


def test_stages_that_end_one_after_the_other_end_the_edge(ring):
    with in_threads(ring) as edge:
        until(lambda: all(edge.lives(role) for role in ROLES))
        assert edge.thread.is_alive()
        ring.source.write({**ring.source.read(), "ended": 0})
        ring.control.write({"stop": 1, "hurry": 0})
        edge.thread.join(5)
        assert not edge.thread.is_alive()
    assert edge.outcome is None
    assert ended(ring) == set(ROLES)


def test_a_stop_is_told_to_all_and_a_hurry_only_when_it_is_overdue(ring, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FINISH_S", 0.4)
    with in_threads(ring) as edge:
        until(lambda: all(edge.lives(role) for role in ROLES))
    assert ring.control.read() == {"stop": 1, "hurry": 0}
    assert edge.stopped_in_s < 0.4
    assert edge.outcome is None


def test_an_overdue_stop_is_hurried_and_ends_in_order(ring, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FINISH_S", 0.4)
    with in_threads(ring, staging="ends when it is overdue") as edge:
        until(lambda: all(edge.lives(role) for role in ROLES))
    assert ring.control.read() == {"stop": 1, "hurry": 1}
    assert 0.4 <= edge.stopped_in_s < 0.7
    assert ended(ring) == set(ROLES)


def test_a_stage_that_never_ends_is_left_behind_in_time(ring, monkeypatch, caplog):
    monkeypatch.setattr(supervisor_module, "_FINISH_S", 0.4)
    with in_threads(ring, inference="never ends") as edge:
        until(lambda: all(edge.lives(role) for role in ROLES))
    assert 0.6 <= edge.stopped_in_s < 1.2
    assert "left behind" in caplog.text


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("behaviour", "kind"), [("cannot go on", ConfigError), ("has a bug", ZeroDivisionError)])
def test_a_thread_that_fails_ends_the_edge_with_its_error_and_the_others_end_before_that(ring, role, behaviour, kind):
    with in_threads(ring, **{role: behaviour}) as edge:
        edge.thread.join(2.0)
        assert not edge.thread.is_alive(), "nobody waits for what cannot come"
        assert isinstance(edge.outcome, kind)
        assert not any(host.is_alive() for host in edge.hosts)
    assert ended(ring) == set(ROLES)


def test_a_process_that_cannot_go_on_ends_the_edge_with_its_error_message_and_hint(ring):
    with in_processes(ring, source="cannot go on") as edge:
        edge.thread.join(15.0)
        assert not edge.thread.is_alive()
    assert isinstance(edge.outcome, ConfigError)
    assert edge.outcome.message == "The frames have another shape."
    assert edge.outcome.hint == "Correct [frame]."
    assert edge.outcome.ids == {"path": "x.h5"}
    assert set(edge.supervisor.restarts.values()) == {0}
    assert ended(ring) == set(ROLES)


def test_a_process_that_is_away_at_the_very_start_is_for_the_operator_to_see(ring):
    with in_processes(ring, staging="is away at its start") as edge:
        edge.thread.join(15.0)
        assert not edge.thread.is_alive()
    assert isinstance(edge.outcome, TransientError)
    assert edge.outcome.hint == "Wait."


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [("is killed in its first life", "ended by SIGKILL"), ("is away in its first life", "ended with exit code 3")],
)
def test_a_process_that_dies_after_it_came_up_is_started_anew_at_once(ring, behaviour, told):
    with in_processes(ring, inference=behaviour) as edge:
        until(lambda: edge.lives("inference") == 2)
        until(lambda: len(edge.supervisor.pids()) == 3)
        assert edge.supervisor.restarts == {"source": 0, "inference": 1, "staging": 0}
        assert f"inference {told}, started anew" in edge.supervisor.problem
    assert edge.outcome is None
    assert ended(ring) == set(ROLES)


def test_a_process_that_dies_at_its_start_again_and_again_is_tried_ever_more_seldom_and_the_others_go_on(
    ring, monkeypatch
):
    starts = []
    start = ProcessHost.start

    def counted(self):
        if self.place == "staging":
            starts.append((time.monotonic(), running.supervisor._pause_s["staging"]))
        start(self)

    monkeypatch.setattr(ProcessHost, "start", counted)
    monkeypatch.setattr(supervisor_module, "_AGAIN_FIRST_S", 0.25)
    monkeypatch.setattr(supervisor_module, "_FINISH_S", 1.0)
    monkeypatch.setattr(supervisor_module, "_BEGIN_S", 0.5)
    running = in_processes(ring, staging="dies at its start")
    with running as edge:
        until(lambda: len(starts) >= 4, 30)
        others = {role: pid for role, pid in edge.supervisor.pids().items() if role != "staging"}
        assert set(others) == {"source", "inference"}
        assert edge.lives("source") == edge.lives("inference") == 1
        assert edge.supervisor.restarts["staging"] >= 3
    assert [pause_s for _, pause_s in starts[:4]] == [0.0, 0.25, 0.5, 1.0]
    assert all(later[0] - earlier[0] >= later[1] for earlier, later in pairwise(starts))
    assert edge.outcome is None


@pytest.mark.parametrize(("asked", "threads"), [(None, "1"), ("2", "2")])
def test_numpy_gets_one_thread_and_memory_two_arenas_in_a_stage_unless_somebody_asked_for_more(
    ring, monkeypatch, asked, threads
):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", asked)
    with in_processes(ring) as edge:
        until(lambda: edge.lives("inference"))
        environ = Path(f"/proc/{edge.supervisor.pids()['inference']}/environ").read_bytes().split(b"\0")
    assert f"OPENBLAS_NUM_THREADS={threads}".encode() in environ
    assert b"MALLOC_ARENA_MAX=2" in environ


def test_the_source_begins_when_the_others_are_there_to_take_its_frames(ring, monkeypatch):
    there, start = [], ProcessHost.start

    def told(self):
        if self.place == "source":
            there.append(ring.beats.tolist())
        start(self)

    monkeypatch.setattr(ProcessHost, "start", told)
    with in_processes(ring) as edge:
        until(lambda: edge.lives("source") == 1)
    ((source, inference, _, staging),) = there
    assert source == 0
    assert inference > 0
    assert staging > 0


def test_a_process_that_shows_no_life_is_ended_and_started_anew(ring):
    with in_processes(ring, stall_after_s=2.5, staging="stops in its first life") as edge:
        until(lambda: edge.lives("staging") == 1)
        stopped_s = time.monotonic()
        until(lambda: edge.lives("staging") == 2)
        assert time.monotonic() - stopped_s > 2.0
        assert "staging shows no life" not in edge.supervisor.problem, "the newest is that it is started anew"
        assert "SIGKILL" in edge.supervisor.problem
    assert edge.outcome is None


def test_whoever_was_ended_for_a_stall_gets_twice_the_time_but_never_more_than_eight_times(ring):
    host, now_s = ProcessHost("inference", ring, ()), 1e6
    supervisor = Supervisor(ring, [host], stall_after_s=10.0)

    def hangs_after(silent_s):
        ring.beats[ROLES.index("inference")] = int((now_s - silent_s) * 1e9)
        return supervisor._hangs(host, now_s)

    for allowed_s in (10, 20, 40, 80, 80, 80, 80, 80):
        assert not hangs_after(allowed_s - 1)
        assert hangs_after(allowed_s + 1)


def test_a_standby_is_given_a_minute_and_what_it_was_given_is_not_given_to_who_serves(ring):
    host, now_s = ProcessHost(SEATS[1], ring, ()), 1e6
    supervisor = Supervisor(ring, [host], stall_after_s=10.0)

    def hangs_after(silent_s):
        ring.beats[PLACES.index(SEATS[1])] = int((now_s - silent_s) * 1e9)
        return supervisor._hangs(host, now_s)

    for _ in range(4):
        assert not hangs_after(59)
        assert hangs_after(61)
    ring.inference.write({**ring.inference.read(), "seat": 1})
    assert not hangs_after(9)
    assert hangs_after(11), "it serves now: frames wait"


def test_a_standby_that_does_not_come_up_is_told(ring):
    host = ProcessHost(SEATS[1], ring, ())
    supervisor = Supervisor(ring, [host], stall_after_s=10.0)
    assert not supervisor._hangs(host, 290.0)
    assert supervisor._hangs(host, 310.0)
    assert "standby has not come up" in supervisor.problem


def test_a_standby_that_dies_of_what_it_prepares_is_tried_ever_more_seldom(ring, monkeypatch):
    starts, start = [], ProcessHost.start

    def counted(self):
        if self.place == SEATS[1]:
            starts.append(running.supervisor._pause_s[SEATS[1]])
        start(self)

    monkeypatch.setattr(ProcessHost, "start", counted)
    running = in_processes(ring, standby="is killed in each life")
    with running as edge:
        until(lambda: len(starts) >= 4, 30)
        assert starts[:4] == [0.0, 0.25, 0.5, 1.0]
        monkeypatch.setattr(supervisor_module, "_LONG_LIFE_S", 0.0)
        until(lambda: len(starts) >= 6, 30)
        assert starts[5] == 0.25, "after a long life it begins anew"
    assert edge.outcome is None


def test_a_standby_that_hangs_holds_up_neither_a_stop_nor_the_end(ring, caplog):
    with in_processes(ring, standby="stops in its first life") as edge:
        until(lambda: edge.lives(SEATS[1]) == 1)
    assert edge.stopped_in_s < 3.5
    assert (edge.outcome, caplog.text) == (None, "")


def test_with_the_ring_full_a_staging_that_shows_no_life_is_started_anew_within_seconds(ring):
    ring.source.write({**ring.source.read(), "head": ring.frames})
    with in_processes(ring, live=True, staging="stops in its first life") as edge:
        until(lambda: edge.lives("staging") == 1)
        stopped_s = time.monotonic()
        until(lambda: edge.lives("staging") == 2)
        assert time.monotonic() - stopped_s < 5.0
    assert edge.outcome is None


def test_with_the_ring_full_nobody_waits_for_the_source(ring):
    """It may be busy with a file that takes seconds to open: it holds up nobody."""
    ring.source.write({**ring.source.read(), "head": ring.frames})
    with in_processes(ring, source="stops in its first life") as edge:
        until(lambda: edge.lives("source") == 1)
        time.sleep(2.0)
        assert edge.supervisor.restarts["source"] == 0
        ring.staging.write({**ring.staging.read(), "taken": ring.frames})
        os.kill(edge.supervisor.pids()["source"], signal.SIGCONT)
    assert edge.outcome is None


@pytest.mark.parametrize("role", ROLES)
def test_a_stop_before_the_first_frame_waits_for_no_stage_that_still_comes_up(ring, caplog, role):
    with in_processes(ring, **{role: "does not come up"}) as edge:
        others = set(ROLES) - {role, "source"}
        until(lambda: all(edge.lives(each) for each in others) and edge.supervisor.pids())
    assert edge.stopped_in_s < 1.5, "with others at work"
    assert (edge.outcome, caplog.text) == (None, "")
    assert ended(ring) == set(ROLES)


def test_a_signal_to_the_whole_group_while_stages_start_reaches_the_supervisor_alone(ring):
    """Ctrl-C in the first second: stages that still import must not die of it."""
    with in_processes(ring) as edge:
        until(lambda: len(edge.supervisor.pids()) == 3, 5)
        for pid in edge.supervisor.pids().values():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        until(lambda: all(edge.lives(role) for role in ROLES))
        assert set(edge.supervisor.restarts.values()) == {0}
    assert edge.outcome is None


def test_a_stage_that_cannot_be_started_at_all_leaves_no_process_behind(ring):
    hosts = [
        ProcessHost("staging", ring, (sys.executable, str(TINY))),
        ProcessHost("source", ring, ("/nowhere/python",)),
    ]
    edge = Running(ring, hosts)
    with edge:
        edge.thread.join(5)
    assert isinstance(edge.outcome, FileNotFoundError)


def test_a_process_that_cannot_be_started_anew_is_tried_again_and_the_others_go_on(ring, tmp_path):
    """As when there is no memory for one more process, or no number."""
    python, away = tmp_path / "python", tmp_path / "away"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Running(ring, [ProcessHost(role, ring, (str(python), str(TINY))) for role in ORDER]) as edge:
        until(lambda: all(edge.lives(role) for role in ROLES))
        python.rename(away)
        os.kill(edge.supervisor.pids()["inference"], signal.SIGKILL)
        until(lambda: edge.supervisor.restarts["inference"] >= 3 or not edge.thread.is_alive())
        assert edge.thread.is_alive()
        assert "inference could not be started" in edge.supervisor.problem
        assert set(edge.supervisor.pids()) == {"source", "staging"}
        assert edge.supervisor._pause_s["inference"] >= 0.5, "ever more seldom"
        away.rename(python)
        until(lambda: edge.lives("inference") == 2)
    assert edge.outcome is None
    assert ended(ring) == set(ROLES)


def test_an_error_of_ours_survives_the_board_and_an_unknown_one_is_told_too():
    told = ConfigError("no", hint="yes", ids={"a": "b"}).as_dict()
    again = error_of(told)
    assert (type(again), again.message, again.hint, again.ids) == (ConfigError, "no", "yes", {"a": "b"})
    assert error_of({"error": "SomethingNew", "message": "what"}).message == "what"


def test_whoever_stands_by_begins_when_frames_come_and_its_death_is_its_own(ring, monkeypatch):
    begun, start = {}, ProcessHost.start

    def told(self):
        begun.setdefault(self.place, ring.beats.tolist())
        start(self)

    monkeypatch.setattr(ProcessHost, "start", told)
    with in_processes(ring, standby="is killed in its first life") as edge:
        until(lambda: edge.lives(SEATS[1]) == 2)
        assert all(begun[SEATS[1]][PLACES.index(place)] for place in ("source", "inference", "staging"))
        assert set(edge.supervisor.pids()) == {*ROLES, STANDBY}
        assert edge.supervisor.restarts == {"source": 0, "inference": 0, "staging": 0, STANDBY: 1}
        assert edge.supervisor.problem == "standby ended by SIGKILL, started anew"
    assert edge.outcome is None
    assert ended(ring) == set(ROLES)


def test_one_that_stands_by_and_cannot_go_on_does_not_end_the_edge(ring, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_AGAIN_FIRST_S", 0.05)
    with in_processes(ring, standby="cannot go on") as edge:
        until(lambda: edge.supervisor.restarts[STANDBY] >= 2)
        assert edge.lives("inference") == 1
    assert edge.outcome is None


def test_a_stage_is_told_of_by_what_it_does_and_a_seat_is_no_longer_ready_when_it_is_started_anew(ring):
    with in_processes(ring, standby="works", inference="works") as edge:
        until(lambda: edge.lives(SEATS[1]) == 1)
        before = edge.supervisor.pids()
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        nices = {role: os.getpriority(os.PRIO_PROCESS, pid) - usual for role, pid in before.items()}
        assert nices == {"source": 0, "inference": 0, "staging": 0, STANDBY: 10 if _may_return_to(usual) else 0}
        ring.inference.write({**ring.inference.read(), "seat": 1})
        after = edge.supervisor.pids()
        assert (after["inference"], after[STANDBY]) == (before[STANDBY], before["inference"])
        ring.ready[0] = 8
        os.kill(after[STANDBY], signal.SIGKILL)
        until(lambda: edge.lives("inference") == 2)
        assert ring.ready[0] == 0
        assert edge.supervisor.restarts[STANDBY] == 1
        os.kill(after["inference"], signal.SIGKILL)
        until(lambda: edge.lives(SEATS[1]) == 2)
        assert edge.supervisor.restarts["inference"] == 1


def test_nobody_begins_to_stand_by_at_a_stop(ring):
    with in_processes(ring, standby="works", source="does not come up") as edge:
        until(lambda: edge.supervisor.pids().get("source"))
    assert edge.lives(SEATS[1]) == 0
    assert edge.outcome is None


def test_a_stop_does_not_wait_for_one_that_only_begins_to_stand_by(ring):
    with in_processes(ring, standby="does not come up") as edge:
        until(lambda: edge.supervisor.pids().get(STANDBY))
        ring.source.write({**ring.source.read(), "head": 1})
    assert edge.stopped_in_s < 1.5
    assert edge.supervisor.restarts[STANDBY] == 0
    assert edge.outcome is None
