"""The whole edge in one process: books, shards and status of a stream, from start to stop and on again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from filmloop.core.errors import TransientError
from filmloop.edge.control import request_seal
from filmloop.edge.lock import only_edge
from filmloop.edge.status import is_alive, read_status
from filmloop.testing.edge import ScriptedSource, blocks_of, staged
from rigs.edge_service import edge, exact, running, shows
from rigs.waiting import until


def test_without_a_model_or_a_registry_frames_are_staged_and_counted(home):
    accounting = exact(edge(home, ScriptedSource(blocks_of(1000))).run(threading.Event()))
    assert accounting.frames_in == accounting.frames_staged == 1000
    assert accounting.frames_dropped == {"no_model": 1000}
    shards, frames = staged(home)
    assert frames["pulse_id"].tolist() == list(range(1000))
    assert (frames["version"] == 0).all()
    assert np.isnan(frames["phase"]).all()
    assert shards[-1].manifest.model_versions == {"0": shards[-1].manifest.frames}
    status = read_status(home)
    assert status.state == "stopped"
    assert status.frames_in == 1000
    assert not is_alive(home)


def test_a_restart_continues_the_stream_and_its_accounting(home):
    script = [*blocks_of(500), *blocks_of(300, run=2)]
    first = exact(edge(home, ScriptedSource(script)).run(threading.Event(), max_frames=333))
    assert first.frames_in == 333
    source = ScriptedSource(script)
    second = exact(edge(home, source).run(threading.Event()))
    assert source.opened == [(1, 332)]
    assert second.frames_in == second.frames_staged == 800
    _, frames = staged(home)
    assert frames["pulse_id"].tolist() == [*range(500), *range(300)]
    third = edge(home, ScriptedSource(script)).run(threading.Event())
    assert third == second


def test_a_second_edge_is_refused_while_the_first_goes_on(home):
    with running(edge(home, ScriptedSource(blocks_of(3_000_000)))) as outcome:
        until(lambda: is_alive(home))
        with pytest.raises(TransientError, match="already runs"):
            edge(home, ScriptedSource([])).run(threading.Event())
    exact(outcome[0])


def test_a_seal_request_seals_all_that_came_before_it(home):
    source = ScriptedSource(blocks_of(100), at_end=lambda: True)
    with running(edge(home, source)):
        assert shows(home, lambda status: status.frames_in == 100).frames_staged == 0
        assert request_seal(home, "cycle-1", 5.0) is True
        assert staged(home)[1]["pulse_id"].tolist() == list(range(100))
        assert request_seal(home, "cycle-2", 5.0) is True, "nothing is open: nothing to do"
    assert len(staged(home)[0]) == 1


def test_labels_are_staged_beside_the_counts(home):
    accounting = edge(home, ScriptedSource(blocks_of(100), labelled=True)).run(threading.Event())
    assert accounting.frames_staged == 100
    assert staged(home)[0][0].manifest.labelled


def test_the_status_tells_rate_latency_and_version(home, versions_of):
    versions = versions_of(1)
    versions.promote("1")
    with running(edge(home, ScriptedSource(blocks_of(3_000_000)), versions.registry)):
        status = shows(home, lambda status: status.version == "1" and status.rate_hz > 0 and status.latency_p99_ms > 0)
    assert status.state == "running"
    assert status.runtime == "torch"
    assert status.latency_p50_ms <= status.latency_p99_ms
    assert status.version_since_utc >= status.started_utc


def test_the_folder_is_free_again_after_a_stop(home):
    edge(home, ScriptedSource(blocks_of(10))).run(threading.Event())
    with only_edge(home):
        pass


def test_a_site_that_goes_back_to_an_earlier_run_continues_behind_its_newest_frame(home):
    first = exact(edge(home, ScriptedSource(blocks_of(100, run=7))).run(threading.Event()))
    source = ScriptedSource(blocks_of(100, run=2), live=True)
    second = exact(edge(home, source).run(threading.Event()))
    assert second.frames_in == first.frames_in + 100
    again = ScriptedSource([], live=True)
    assert edge(home, again).run(threading.Event()) == second
    assert again.opened == [(2, 99)]
