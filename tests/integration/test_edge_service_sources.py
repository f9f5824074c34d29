"""The whole edge in one process: what it does with sources that fail, hurry, skip or bring damaged frames."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.config.schema import ReplaySource
from filmloop.core.errors import DataError, TransientError
from filmloop.edge.stages import source as source_stage
from filmloop.edge.status import is_alive, read_status
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import FRAME_SHAPE, STREAM, ScriptedSource, blocks_of, staged
from rigs.edge_service import edge, exact


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
    # The ring is small: on a busy machine inference itself comes too late for a few.
    lost = accounting.frames_dropped.get("overflow", 0)
    assert accounting.frames_in == sum(results) + lost == frames_sent, "inference goes on while staging sheds"
    assert lost < frames_sent // 10
    assert 0 < shed < frames_sent
    shards, frames = staged(home)
    assert len(np.unique(frames["pulse_id"])) == accounting.frames_staged == frames_sent - shed - lost
    # What a manifest says was left out is what is not there, up to the last shard.
    last = shards[-1].manifest.last_pulse_id
    left_out = [left for shard in shards for left in shard.manifest.dropped]
    assert {left.reason for left in left_out} - {"overflow"} == {"queue_full"}
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
