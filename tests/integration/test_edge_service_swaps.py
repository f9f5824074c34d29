"""The whole edge in one process: what it does with versions, good and bad, and with a registry that goes away."""

from __future__ import annotations

import logging
import threading

import numpy as np

from filmloop.core.errors import TransientError
from filmloop.edge.control import request_look, request_seal
from filmloop.edge.models import ModelStore, Proven
from filmloop.edge.service import EdgeService
from filmloop.edge.status import read_status
from filmloop.ports.runtime import Inferred
from filmloop.testing.edge import FRAME_SHAPE, POOL_FRAMES, ScriptedSource, blocks_of, small_site, staged
from rigs.edge_service import edge, exact, running, shows
from rigs.waiting import until


def test_twenty_swaps_at_full_speed_mix_nothing_and_lose_nothing(home, versions_of):
    versions = versions_of(1, 2)
    wrong, seen = [], []

    def check(result):
        rows = (result.pulse_id_N % POOL_FRAMES).astype(int)
        if not result.version:
            return
        expected = versions.rate[result.version][rows]
        if not np.allclose(result.rate_NCE, expected, rtol=1e-4, atol=1e-6):
            wrong.append(result.pulse_id_N[0])
        seen.append((result.version, len(rows)))

    # The two versions must differ by far more than the tolerance, or the check could not tell a mixture.
    first, second = versions.rate.values()
    assert np.abs(first - second).mean() > 0.01
    versions.promote("1")
    source = ScriptedSource(blocks_of(3_000_000))
    service = edge(
        home,
        source,
        versions.registry,
        on_result=check,
        edge={"watch_every_s": 0.001, "ring_mb": 0.5},
    )
    with running(service) as outcome:
        shows(home, lambda status: status.swaps == 1)
        for swap in range(2, 23):
            versions.promote("1" if swap % 2 else "2")
            shows(home, lambda status, swap=swap: status.swaps == swap)
    accounting = exact(outcome[0])
    assert not wrong
    assert read_status(home).swaps == 22
    assert accounting.frames_unstaged == {}
    assert accounting.frames_inferred == sum(frames for _, frames in seen)
    _, frames = staged(home)
    assert frames["pulse_id"].tolist() == list(range(accounting.frames_in))
    for version in ("1", "2"):
        mine = frames["version"] == int(version)
        assert mine.sum() == sum(count for name, count in seen if name == version) > 0
        expected = versions.phase[version][(frames["pulse_id"][mine] % POOL_FRAMES).astype(int)]
        np.testing.assert_allclose(frames["phase"][mine], expected, atol=1e-3)


def test_a_registry_that_is_away_at_the_start_and_again_later_never_stops_the_frames(home, versions_of, caplog):
    versions = versions_of(1, 2)
    versions.promote("1")
    registry, connects = versions.registry, []
    registry.away = True

    def connect():
        connects.append(1)
        if registry.away:
            raise TransientError("No server at 127.0.0.1:5050.")
        return registry

    config = small_site(staging={"frames_per_shard": 8192})
    service = EdgeService(config=config, home=home, source=ScriptedSource(blocks_of(3_000_000)), registry=connect)
    with caplog.at_level(logging.WARNING, "filmloop"), running(service) as outcome:
        shows(home, lambda status: status.frames_in > 1000 and "No server" in status.last_problem)
        until(lambda: len(connects) > 3)
        registry.away = False
        mark = shows(home, lambda status: status.version == "1").frames_in
        registry.away = True
        assert shows(home, lambda status: status.frames_in > mark + 1000).version == "1"
        until(lambda: sum("registry is away" in record.message for record in caplog.records) == 2)
        registry.away = False
        versions.promote("2")
        shows(home, lambda status: status.version == "2")
    first = exact(outcome[0])
    # Failures every 20 ms, and one line for each of the two times that it went away.
    assert sum("registry is away" in record.message for record in caplog.records) == 2

    registry.away = True
    again = EdgeService(config=config, home=home, source=ScriptedSource(blocks_of(3_000_000)), registry=connect)
    with running(again):
        shows(home, lambda status: status.version == "2" and status.frames_inferred > first.frames_inferred)


def test_a_bad_champion_is_refused_while_frames_go_on_with_the_old_one(home, versions_of):
    versions = versions_of(1, 2)
    versions.promote("1")
    service = edge(home, ScriptedSource(blocks_of(3_000_000)), versions.registry)
    with running(service) as outcome:
        shows(home, lambda status: status.version == "1")
        weights = versions.registry._folder / "2" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
        versions.promote("2")
        mark = shows(home, lambda status: status.swaps_refused == 1)
        assert "version 2 refused" in mark.last_problem
        assert shows(home, lambda status: status.frames_inferred > mark.frames_inferred + 1000).version == "1"
    exact(outcome[0])


def test_quality_belongs_to_the_live_version_and_starts_anew_at_a_swap(home, versions_of):
    versions = versions_of(1, 2)
    versions.promote("1")
    # 32 frames and 8 samples every 20 ms: the status, every 50 ms, shows each quality before the next hundred frames.
    service = edge(home, ScriptedSource(blocks_of(3_000_000), pause_s=0.02), versions.registry)
    with running(service):
        first = shows(home, lambda status: status.quality is not None and status.quality.frames >= 128).quality
        versions.promote("2")
        second = shows(home, lambda status: status.quality is not None and status.quality.version == "2").quality
    assert first.version == "1"
    assert second.frames < 128
    assert np.isfinite([first.nll, first.nll_constant, second.nll]).all()


def test_an_edge_told_to_stay_takes_new_versions_and_requests_after_the_end_of_the_data(home, versions_of):
    versions = versions_of(1)
    with running(edge(home, ScriptedSource(blocks_of(100)), versions.registry, stay=True)) as outcome:
        shows(home, lambda status: status.state == "drained")
        assert request_seal(home, "cycle-1", 5.0) is True
        versions.promote("1")
        assert shows(home, lambda status: status.version == "1").frames_staged == 100
        assert not outcome
    assert exact(outcome[0]).frames_in == 100


def test_an_edge_that_looks_once_an_hour_looks_when_it_is_asked_to_and_tells_at_once(home, versions_of):
    versions = versions_of(1, 2)
    versions.promote("1")
    seldom = {"watch_every_s": 3600.0, "status_every_s": 3600.0}
    with running(edge(home, ScriptedSource(blocks_of(256)), versions.registry, stay=True, edge=seldom)):
        shows(home, lambda status: status.version == "1")
        versions.promote("2")
        request_look(home)
        shows(home, lambda status: status.version == "2")


class Blinded:
    """Weights that make no numbers of any frame, though they did of those that they were proven with."""

    version, name, lanes, batch_frames, most_frames = "9", "blinded", 1, 32, 32

    def start(self, counts_NCE, *, dense=False, surprise=False):
        self.frames = len(counts_NCE)
        return self

    def result(self):
        return Inferred(phase_N=np.full(self.frames, np.nan, np.float32))

    def infer(self, counts_NCE):
        return np.full(counts_NCE.shape, np.nan, np.float32)


def test_weights_that_make_no_numbers_stop_nothing_and_are_told(home, monkeypatch):
    no = np.zeros((0, *FRAME_SHAPE))
    blinded = Proven(runtime=Blinded(), digest="", counts_NCE=no, golden_NCE=no, tolerance=1.0)
    monkeypatch.setattr(ModelStore, "remembered", lambda self: blinded)
    service = edge(home, ScriptedSource(blocks_of(2000)))
    accounting = exact(service.run(threading.Event()))
    assert accounting.frames_inferred == accounting.frames_staged == 2000
    status = read_status(home)
    assert "version 9 made rates that are not finite" in status.last_problem
    assert status.quality is None


def test_a_disk_that_cannot_give_the_remembered_version_does_not_keep_the_edge_from_starting(home, monkeypatch):
    def refusing(self):
        raise TransientError("live.json: Input/output error.")

    monkeypatch.setattr(ModelStore, "remembered", refusing)
    accounting = exact(edge(home, ScriptedSource(blocks_of(100))).run(threading.Event()))
    assert accounting.frames_dropped == {"no_model": 100}
    assert "Input/output error" in read_status(home).last_problem
