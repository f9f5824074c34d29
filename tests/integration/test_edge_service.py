"""The whole edge in one process: real shards, real networks, a registry in memory."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from filmloop.adapters.sources.build import build_source
from filmloop.config.paths import Home
from filmloop.config.schema import ReplaySource
from filmloop.core.errors import DataError, TransientError
from filmloop.edge.control import request_look, request_seal
from filmloop.edge.lock import only_edge
from filmloop.edge.models import ModelStore, Proven
from filmloop.edge.service import EdgeService
from filmloop.edge.stages import source as source_stage
from filmloop.edge.status import is_alive, read_status
from filmloop.ports.registry import CHAMPION
from filmloop.ports.runtime import Inferred
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import FRAME_SHAPE, POOL_FRAMES, STREAM, ScriptedSource, blocks_of, pool, small_site, staged
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from filmloop.training.load import load_module
from filmloop_models.catalog import get


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


class Versions:
    """A registry with real bundles, and what each of its versions makes of the pool's frames."""

    def __init__(self, folder, seeds):
        self.registry = MemoryRegistry(folder / "registry")
        self.rate, self.phase = {}, {}
        for seed in seeds:
            bundle = make_model_bundle(folder / f"bundle{seed}", frame_shape=FRAME_SHAPE, seed=seed)
            version = self.registry.register(bundle, key=str(seed), description="", tags={}, metrics={}).version
            with torch.inference_mode():
                rate = load_module(bundle)(torch.from_numpy(pool().astype(np.float32))).numpy()
            self.rate[version], self.phase[version] = rate, get("mixer").sort_key(rate)

    def promote(self, version):
        self.registry.set_alias(CHAMPION, version)


@pytest.fixture(scope="module")
def versions_of(tmp_path_factory):
    return lambda *seeds: Versions(tmp_path_factory.mktemp("versions"), seeds)


@contextmanager
def running(service, **given):
    """The service in a thread; stops it at the end and raises what it raised."""
    stop, outcome = threading.Event(), []

    def work():
        try:
            outcome.append(service.run(stop, **given))
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield outcome
    finally:
        stop.set()
        begun_s = time.monotonic()
        thread.join(10)
    assert time.monotonic() - begun_s < 5, "a clean stop takes at most 5 s"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def until(true, deadline_s=20.0):
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.005)


def shows(home, wanted, deadline_s=20.0):
    """Wait until the status shows what is `wanted`; returns it."""
    until(lambda: (status := read_status(home)) is not None and wanted(status), deadline_s)
    return read_status(home)


def edge(home, frames, registry=None, *, on_result=None, stay=False, **sections):
    # Each seal waits for the disk: shards of 256 frames would make the disk's speed the speed of these tests.
    sections = {"staging": {"frames_per_shard": 8192}, **sections}
    return EdgeService(
        config=small_site(**sections),
        home=home,
        source=frames,
        registry=None if registry is None else lambda: registry,
        on_result=on_result,
        stay=stay,
    )


def exact(accounting):
    assert accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())
    assert accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())
    return accounting


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


def test_a_live_source_that_skipped_frames_meanwhile_counts_them_as_missing(home):
    source = ScriptedSource([(1, range(100)), (1, range(150, 200))], live=True)
    edge(home, source).run(threading.Event(), max_frames=100)
    accounting = exact(edge(home, source).run(threading.Event()))
    assert accounting.frames_in == 150
    assert accounting.frames_missing == 50


def test_late_bad_and_repeated_frames_are_counted_and_never_staged(home):
    class Wide(ScriptedSource):
        def read(self, max_frames, timeout_s=0.2):
            block = super().read(max_frames, timeout_s)
            if block is not None and 100 in block.pulse_id_N:
                return replace(block, counts_NCE=np.zeros((len(block), 4, 8), np.uint8))
            return block

    script = [(1, [0, 1, 2, 2, 1, 3]), (1, [100, 101]), (1, [102, 103])]
    accounting = exact(edge(home, Wide(script)).run(threading.Event()))
    assert accounting.frames_in == 10
    assert accounting.frames_dropped == {"duplicate": 2, "bad_frame": 2, "no_model": 6}
    assert accounting.frames_unstaged == {"duplicate": 2, "bad_frame": 2}
    shards, frames = staged(home)
    assert frames["pulse_id"].tolist() == [0, 1, 2, 3, 102, 103]
    assert [(left.first_pulse_id, left.last_pulse_id, left.reason) for left in shards[0].manifest.dropped] == [
        (100, 101, "bad_frame")
    ]


def test_a_source_that_fails_is_opened_again_behind_the_last_frame(home, monkeypatch):
    monkeypatch.setattr(source_stage, "_REOPEN_FIRST_S", 0.01)
    source = ScriptedSource(blocks_of(320), errors={4: DataError("a damaged record"), 8: TransientError("no link")})
    accounting = exact(edge(home, source).run(threading.Event()))
    assert source.opened == [None, (1, 95), (1, 191)]
    assert accounting.frames_in == accounting.frames_staged == 320
    assert "no link" in read_status(home).last_problem


def test_absent_data_are_an_error_at_the_start_and_leave_a_stopped_status(home):
    class Absent(ScriptedSource):
        def open(self, *, after):
            raise DataError("No recording at /nowhere.")

    with pytest.raises(DataError, match="nowhere"):
        edge(home, Absent([])).run(threading.Event())
    assert read_status(home).state == "stopped"
    assert not is_alive(home)


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


def slow_seals(monkeypatch, pause_s):
    write_group = ShardWriter._write_group

    def slow(self, path):
        time.sleep(pause_s)
        return write_group(self, path)

    monkeypatch.setattr(ShardWriter, "_write_group", slow)


def test_a_source_with_a_rate_of_its_own_sheds_and_every_shed_frame_is_counted(home, versions_of, monkeypatch):
    slow_seals(monkeypatch, 0.2)
    versions = versions_of(1)
    versions.promote("1")
    results, frames_sent = [], 8_000
    service = edge(
        home,
        # At least 1.5 s of batches against 0.2 s a seal: some come after others were shed, however fast the machine; and
        # 5,000 frames/s are few enough for a slow one to infer.
        ScriptedSource(blocks_of(frames_sent), pause_s=0.006),
        versions.registry,
        on_result=lambda result: results.append(len(result.pulse_id_N)),
        source={"rate_hz": 2000.0},
        edge={"ring_mb": 0.03},
        staging={"frames_per_shard": 64, "frames_per_chunk": 64},
    )
    accounting = exact(service.run(threading.Event()))
    shed = accounting.frames_unstaged["queue_full"]
    assert accounting.frames_in == sum(results) == frames_sent, "inference goes on while staging sheds"
    assert 0 < shed < frames_sent
    shards, frames = staged(home)
    assert len(np.unique(frames["pulse_id"])) == accounting.frames_staged == frames_sent - shed
    # What a manifest says was left out is what is not there, up to the last shard.
    last = shards[-1].manifest.last_pulse_id
    left_out = [left for shard in shards for left in shard.manifest.dropped]
    assert {left.reason for left in left_out} == {"queue_full"}
    absent = np.setdiff1d(np.arange(last + 1), frames["pulse_id"])
    assert sum(left.frames for left in left_out) == len(absent)
    assert all(
        shard.manifest.accounting.frames_staged + sum(shard.manifest.accounting.frames_unstaged.values())
        == shard.manifest.accounting.frames_in
        for shard in shards
    )


def test_a_source_that_can_wait_waits_and_nothing_is_shed(home, monkeypatch):
    slow_seals(monkeypatch, 0.05)
    service = edge(
        home,
        ScriptedSource(blocks_of(2000)),
        edge={"ring_mb": 0.001},
        staging={"frames_per_shard": 256, "frames_per_chunk": 64},
    )
    accounting = exact(service.run(threading.Event()))
    assert accounting.frames_unstaged == {}
    assert accounting.frames_staged == 2000


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


def test_damaged_frames_of_a_recording_are_counted_with_their_pulse_ids_and_stop_nothing(home, tmp_path):
    counts = np.random.default_rng(3).poisson(0.5, (600, *FRAME_SHAPE)).astype(np.float32)
    bad = [0, 99, 100, 255, 256, 599]
    counts[bad, 1, 1] = [np.nan, -1, np.inf, 0.5, np.nan, -3]
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["Ximg"] = counts

    def replayed():
        source = build_source(ReplaySource(path=str(tmp_path / "run.h5"), stream=STREAM), FRAME_SHAPE)
        return edge(home, source, staging={"frames_per_shard": 256})

    replayed().run(threading.Event(), max_frames=300)
    # Cut behind the first two shards and go on: what lay between a shard and the cut is told once.
    accounting = exact(replayed().run(threading.Event()))
    assert accounting.frames_in == 600
    assert accounting.frames_dropped == {"bad_frame": 6, "no_model": 594}
    assert accounting.frames_unstaged == {"bad_frame": 6}
    assert accounting.frames_missing == 0
    shards, frames = staged(home)
    assert frames["pulse_id"].tolist() == [row for row in range(600) if row not in bad]
    left_out = [left for shard in shards for left in shard.manifest.dropped]
    # 599 comes behind the last shard.
    assert [(left.first_pulse_id, left.last_pulse_id, left.frames, left.reason) for left in left_out] == [
        (0, 0, 1, "bad_frame"),
        (99, 100, 2, "bad_frame"),
        (255, 256, 2, "bad_frame"),
    ]
    for shard in shards:
        upto = exact(shard.manifest.accounting)
        assert upto.frames_in == shard.manifest.last_pulse_id + 1
        # Each shard's manifest tells of the damaged frames below its last one that no earlier manifest told of.
        assert all(left.last_pulse_id < shard.manifest.last_pulse_id for left in shard.manifest.dropped)
    assert "pulse 599 on: damaged" in read_status(home).last_problem


class Torn(ScriptedSource):
    """Raises whenever frames behind `end` are asked for, as often as `errors` lasts."""

    def __init__(self, script, end, errors):
        super().__init__(script)
        self.end, self.torn = end, list(errors)

    def read(self, max_frames, timeout_s=0.2):
        if self._todo and self._todo[0][1][0] >= self.end and self.torn:
            raise self.torn.pop(0)
        return super().read(max_frames, timeout_s)


def test_data_that_stay_unreadable_end_the_edge_with_their_error(home, monkeypatch):
    monkeypatch.setattr(source_stage, "_REOPEN_FIRST_S", 0.001)
    source = Torn(blocks_of(320), 96, [DataError("a damaged chunk")] * 100)
    with pytest.raises(DataError, match="damaged chunk"):
        edge(home, source).run(threading.Event())
    assert source.opened == [None] + [(1, 95)] * 4
    status = read_status(home)
    assert status.state == "stopped"
    assert status.frames_in == status.frames_staged == 96


def test_a_recording_that_cannot_be_opened_again_ends_the_edge_too(home, monkeypatch):
    monkeypatch.setattr(source_stage, "_REOPEN_FIRST_S", 0.001)

    class Deleted(Torn):
        def open(self, *, after):
            super().open(after=after)
            if after is not None:
                raise DataError("No recording at run.h5.")

    with pytest.raises(DataError, match="No recording"):
        edge(home, Deleted(blocks_of(320), 96, [TransientError("no link")])).run(threading.Event())


def test_a_source_that_is_away_is_opened_again_for_ever(home, monkeypatch):
    monkeypatch.setattr(source_stage, "_REOPEN_FIRST_S", 0.001)
    # Four errors of the data between more than five of the link: neither is a row of five.
    errors = [TransientError("no link"), DataError("a torn packet")] * 4 + [TransientError("no link")] * 8
    accounting = exact(edge(home, Torn(blocks_of(320), 96, errors)).run(threading.Event()))
    assert accounting.frames_staged == 320


class Blinded:
    """Weights that make no numbers of any frame, though they did of those that they were proven with."""

    version, name, lanes, batch_frames = "9", "blinded", 1, 32

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


def test_a_site_that_goes_back_to_an_earlier_run_continues_behind_its_newest_frame(home):
    first = exact(edge(home, ScriptedSource(blocks_of(100, run=7))).run(threading.Event()))
    source = ScriptedSource(blocks_of(100, run=2), live=True)
    second = exact(edge(home, source).run(threading.Event()))
    assert second.frames_in == first.frames_in + 100
    again = ScriptedSource([], live=True)
    assert edge(home, again).run(threading.Event()) == second
    assert again.opened == [(2, 99)]
