"""Staging on a disk that refuses, and what goes when there are too many shards."""

from __future__ import annotations

import errno
import logging
import time
from itertools import pairwise

import pytest

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting
from filmloop.core.errors import TransientError
from filmloop.edge.stages import sealer as sealer_module
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import STREAM, staged
from rigs.pagecache import on_disk, share_in_memory
from rigs.refusing import bound_by_modes, unreadable
from rigs.staging import Disk, Edge, in_the_books, left_out, manifests, work_off
from rigs.waiting import until


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_a_full_disk_costs_only_what_does_not_fit_into_memory_and_staging_recovers(home, monkeypatch):
    """The disk refuses from the first seal on: two shards and the open one wait, the rest is counted by reason."""
    disk = Disk(monkeypatch)
    with Edge(home) as edge:
        edge.feed_all(1600)
        until(lambda: edge.counts["disk_full"] == 1600 - 3 * 256)
        assert "No space left" in edge.problem
        assert edge.counts["sealed"] == 0
        disk.error = 0
        until(lambda: edge.counts["sealed"] >= 512)
        edge.feed_all(256, first=1600)
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"disk_full": 832}
    pairs = in_the_books(home, accounting)
    assert [number for _, number in pairs] == [*range(768), *range(1600, 1856)]
    assert left_out(home) == [(768, 1599, 832)]
    assert [manifest.accounting.frames_in for manifest in manifests(home)] == [256, 512, 768, 1856]


def test_a_disk_that_lets_it_in_time_gets_everything_that_was_kept(home, monkeypatch):
    disk = Disk(monkeypatch)
    with Edge(home) as edge:
        edge.feed_all(600)
        until(lambda: len(disk.tries) >= 2)
        edge.end()
        time.sleep(0.1)
        disk.error = 0
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=600, frames_inferred=600, frames_staged=600)
    assert in_the_books(home, accounting) == [(1, number) for number in range(600)]


def test_an_unsealable_shard_at_the_end_is_counted_by_its_reason(home, monkeypatch):
    Disk(monkeypatch, errno.EIO)
    with Edge(home) as edge:
        edge.feed_all(600)
        until(lambda: edge.counts["taken"] == 600)
        begun_s = time.monotonic()
        edge.stop()
        accounting = edge.finish()
        assert time.monotonic() - begun_s < 2.0
    assert accounting == Accounting(frames_in=600, frames_inferred=600, frames_unstaged={"disk_error": 600})
    assert manifests(home) == []


def test_retries_on_a_refusing_disk_back_off_whatever_comes_meanwhile_and_at_the_end_too(home, monkeypatch):
    disk = Disk(monkeypatch, errno.EIO)
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        for start in range(0, 3200, 32):
            edge.feed(range(start, start + 32))
            time.sleep(0.01)
        edge.end()
        time.sleep(1.0)
        tries = list(disk.tries)
        edge.stop()
        accounting = edge.finish()
    # In the first second at 0, 0.25, 0.75 s; one at the end of the data, and again with pauses.
    assert 3 <= len(tries) <= 8
    assert sum(later - earlier < 0.24 for earlier, later in pairwise(tries)) <= 1
    assert accounting.frames_unstaged == {"disk_error": 3200}


def test_a_seal_that_failed_after_its_commit_is_not_counted_twice(home, monkeypatch):
    seal = ShardWriter.seal

    def seals_then_fails(self, **given):
        seal(self, **given)
        raise TransientError("fsync of the folder failed") from OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(ShardWriter, "seal", seals_then_fails)
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(64)
        edge.feed(range(32), run=0)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=96, frames_inferred=96, frames_staged=96)
    assert len(in_the_books(home, accounting)) == 96


def test_a_folder_that_may_not_be_looked_into_is_a_disk_that_refuses_and_loses_nothing(home):
    with bound_by_modes(), Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(32)
        until(lambda: edge.counts["sealed"] == 32)
        with unreadable(home.stage / STREAM / "run000001"):
            edge.feed_all(64, first=32)
            until(lambda: "Permission denied" in edge.problem)
            until(lambda: edge.counts["taken"] == 96)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=96, frames_inferred=96, frames_staged=96)
    assert [manifest.seq for manifest in manifests(home)] == [0, 1, 2]


def test_a_life_that_begins_while_the_disk_refuses_tries_again_and_takes_no_sealed_frame_for_lost(home):
    edge = Edge(home, staging={"frames_per_shard": 32})
    edge.stage._sealer.start()
    edge.feed_all(32)
    work_off(edge.stage)
    until(lambda: edge.stage._sealer.sealed == 32)
    with bound_by_modes(), unreadable(home.stage / STREAM / "run000001"):
        for _ in range(2):
            with pytest.raises(TransientError, match="Permission denied"):
                edge.killed()
    edge.stage = edge.make()
    with edge:
        edge.feed_all(32, first=32)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=64, frames_inferred=64, frames_staged=64)


def test_whether_a_failed_seal_was_committed_is_asked_again_when_the_disk_can_say(home, monkeypatch):
    seal, last_sealed, asked = ShardWriter.seal, sealer_module.last_sealed, []

    def seals_then_fails(self, **given):
        seal(self, **given)
        raise TransientError("fsync of the folder failed") from OSError(errno.EIO, "I/O error")

    def refuses_once(stage, stream):
        asked.append(stream)
        if len(asked) == 1:
            raise TransientError("I/O error") from OSError(errno.EIO, "I/O error")
        return last_sealed(stage, stream)

    monkeypatch.setattr(ShardWriter, "seal", seals_then_fails)
    monkeypatch.setattr(sealer_module, "last_sealed", refuses_once)
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(32)
        accounting = edge.finish()
    assert len(asked) == 2
    assert accounting == Accounting(frames_in=32, frames_inferred=32, frames_staged=32)


def test_a_bug_in_the_sealer_ends_the_stage_at_once_with_its_error(home, monkeypatch):
    def broken(self, **given):
        # So long that two more shards wait behind it.
        time.sleep(0.3)
        raise RuntimeError("a bug")

    monkeypatch.setattr(ShardWriter, "seal", broken)
    edge = Edge(home, staging={"frames_per_shard": 32})
    edge.thread.start()
    edge.feed_all(320)
    edge.thread.join(2.0)
    assert not edge.thread.is_alive()
    assert str(edge.failure) == "a bug"
    edge.ring.close()


def test_old_shards_go_once_they_may(home, monkeypatch):
    monkeypatch.setattr(sealer_module, "_EXPIRE_EVERY_S", 0.0)
    may = lambda shard_id: shard_id.endswith(("0", "2"))  # noqa: E731
    with Edge(home, may_expire=may, staging={"frames_per_shard": 32, "keep_shards": 2}) as edge:
        edge.feed_all(160)
        edge.finish()
    assert [manifest.seq for manifest in manifests(home)] == [1, 3, 4]


def broken_ledger(shard_id):
    raise RuntimeError("database is locked")


def test_a_ledger_in_trouble_does_not_stop_staging(home, monkeypatch):
    monkeypatch.setattr(sealer_module, "_EXPIRE_EVERY_S", 0.0)
    with Edge(home, may_expire=broken_ledger, staging={"frames_per_shard": 32, "keep_shards": 1}) as edge:
        edge.feed_all(96)
        accounting = edge.finish()
    assert "database is locked" in edge.problem
    assert accounting.frames_staged == 96


def test_beyond_the_hard_cap_the_oldest_go_though_nothing_was_trained_and_the_log_says_so(home, monkeypatch, caplog):
    monkeypatch.setattr(sealer_module, "_EXPIRE_EVERY_S", 0.0)
    with (
        caplog.at_level(logging.WARNING, "filmloop"),
        Edge(home, staging={"frames_per_shard": 32, "keep_shards": 2, "max_shards": 3}) as edge,
    ):
        edge.feed_all(192)
        edge.finish()
    assert [manifest.seq for manifest in manifests(home)] == [3, 4, 5]
    assert edge.problem == "3 shards were removed untrained: more than max_shards = 3"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "though no cycle has trained" in line
    assert "max_shards = 3" in line


def test_the_hard_cap_holds_while_the_ledger_is_in_trouble(home, monkeypatch):
    monkeypatch.setattr(sealer_module, "_EXPIRE_EVERY_S", 0.0)
    staging = {"frames_per_shard": 32, "keep_shards": 1, "max_shards": 2}
    with Edge(home, may_expire=broken_ledger, staging=staging) as edge:
        edge.feed_all(160)
        edge.finish()
    assert [manifest.seq for manifest in manifests(home)] == [3, 4]


def test_of_the_memory_of_sealed_shards_the_kernel_gets_back_what_is_not_the_newest(home, monkeypatch):
    on_disk(home.root)
    monkeypatch.setattr(sealer_module, "_CACHED_BYTES", 0)
    with Edge(home) as edge:
        edge.feed_all(600)
        edge.finish()
    files = [path for path in home.stage.rglob("*/c/*") if path.is_file()]
    assert len(files) > 3
    assert [share_in_memory(path) for path in files] == [0.0] * len(files)
    assert staged(home)[1]["pulse_id"].tolist() == list(range(600))
