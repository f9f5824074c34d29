from __future__ import annotations

import errno
import logging
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.types import FrameBlock
from filmloop.edge import stager as stager_module
from filmloop.edge.gauges import Gauges
from filmloop.edge.intake import Intake
from filmloop.edge.stager import Batch, Stager
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import FRAME_SHAPE, STREAM, pool, small_site, staged


class Feeder:
    """Feeds a stager the way the service does."""

    def __init__(self, home: Home, **sections) -> None:
        self.config = small_site(**sections)
        self.intake, self.taken = Intake(FRAME_SHAPE, None), Accounting()
        self.gauges = Gauges(self.taken)
        self.stager = Stager(
            config=self.config,
            home=home,
            stream=STREAM,
            labelled=False,
            staged=0,
            may_expire=lambda _: False,
            gauges=self.gauges,
        )
        self.stager.start()

    def feed(self, ids, *, run=1, dropped=()):
        ids_N = np.asarray(ids, np.uint64)
        block = FrameBlock(
            run_number=run,
            pulse_id_N=ids_N,
            counts_NCE=pool()[ids_N % 64],
            flags_N=np.zeros(len(ids_N), np.uint8),
        )
        arrival = self.intake.admit(block, self.taken)
        batch = Batch(arrival=arrival, version=3, phase_N=np.zeros(len(arrival.block), np.float32), dropped=dropped)
        assert self.stager.put(batch, wait_s=5.0)
        self.taken = arrival.whole(inferred=True)

    def finish(self, *, stop=False, deadline_s=5.0):
        event = threading.Event()
        if stop:
            event.set()
        return self.stager.finish(event, deadline_s)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def holds(accounting: Accounting) -> bool:
    return accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())


def test_shards_are_cut_where_they_are_full_and_each_manifest_is_exact_at_its_last_frame(home):
    feeder = Feeder(home)
    for start in range(0, 600, 50):
        feeder.feed(range(start, start + 50))
    assert feeder.finish()
    shards, frames = staged(home)
    assert [shard.manifest.frames for shard in shards] == [256, 256, 88]
    assert frames["pulse_id"].tolist() == list(range(600))
    assert (frames["counts"] == pool()[np.arange(600) % 64]).all()
    for shard, end in zip(shards, (256, 512, 600), strict=True):
        assert shard.manifest.accounting == Accounting(frames_in=end, frames_inferred=end, frames_staged=end)


def test_a_run_change_seals(home):
    feeder = Feeder(home)
    feeder.feed(range(10))
    feeder.feed(range(5), run=2)
    assert feeder.finish()
    shards, _ = staged(home)
    assert [(shard.manifest.run_number, shard.manifest.frames) for shard in shards] == [(1, 10), (2, 5)]
    assert len({shard.manifest.seq for shard in shards}) == 2


def test_an_open_shard_is_sealed_after_its_time_though_no_frame_comes(home):
    feeder = Feeder(home, staging={"seal_after_s": 0.2})
    feeder.feed(range(10))
    deadline = time.monotonic() + 5
    while feeder.stager.kept.frames_staged < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert feeder.stager.kept.frames_staged == 10
    assert feeder.finish()


def test_what_was_left_out_before_a_frame_is_in_the_manifest_of_its_shard(home):
    feeder = Feeder(home)
    gap = PulseRange(first_pulse_id=10, last_pulse_id=19, frames=10, reason="queue_full")
    feeder.feed(range(10))
    feeder.feed(range(20, 30), dropped=(gap,))
    assert feeder.finish()
    assert staged(home)[0][0].manifest.dropped == (gap,)


def test_a_full_disk_costs_only_what_does_not_fit_into_the_open_shard_and_staging_recovers(home, monkeypatch):
    """The disk refuses from the first seal on for a second: 256 frames wait, 512 are counted, the rest is staged."""
    full = threading.Event()
    full.set()
    write_group = ShardWriter._write_group

    def refusing(self, path):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_group(self, path)

    monkeypatch.setattr(ShardWriter, "_write_group", refusing)
    feeder = Feeder(home)
    for start in range(0, 768, 32):
        feeder.feed(range(start, start + 32))
    deadline = time.monotonic() + 5
    while sum(feeder.stager.kept.frames_unstaged.values()) < 512 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert feeder.stager.kept.frames_unstaged == {"disk_full": 512}
    assert "No space left" in feeder.gauges.last_problem
    full.clear()
    while feeder.stager.kept.frames_staged < 256 and time.monotonic() < deadline:
        time.sleep(0.02)
    for start in range(768, 1024, 32):
        feeder.feed(range(start, start + 32))
    assert feeder.finish()
    shards, frames = staged(home)
    assert frames["pulse_id"].tolist() == [*range(256), *range(768, 1024)]
    first, second = (shard.manifest for shard in shards)
    assert first.accounting == Accounting(frames_in=256, frames_inferred=256, frames_staged=256)
    assert first.dropped == ()
    assert second.accounting.frames_unstaged == {"disk_full": 512}
    assert holds(second.accounting)
    assert second.dropped == (PulseRange(first_pulse_id=256, last_pulse_id=767, frames=512, reason="disk_full"),)


def test_retries_on_a_refusing_disk_back_off(home, monkeypatch):
    tries = []

    def refusing(self, path):
        tries.append(time.monotonic())
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ShardWriter, "_write_group", refusing)
    feeder = Feeder(home, staging={"frames_per_shard": 32})
    for start in range(0, 3200, 32):
        feeder.feed(range(start, start + 32))
        time.sleep(0.01)
    assert feeder.finish()
    # In a second of a hundred batches: at 0, 0.25, 0.75 s, and the last try at the end.
    assert 2 <= len(tries) <= 5
    assert all(later - earlier >= 0.25 for earlier, later in pairwise(tries[:-1]))
    assert feeder.stager.kept.frames_unstaged == {"disk_error": 3200}


def test_a_seal_that_failed_after_its_commit_is_not_counted_twice(home, monkeypatch):
    seal = ShardWriter.seal

    def seals_then_fails(self, **given):
        seal(self, **given)
        raise stager_module.TransientError("fsync of the folder failed") from OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(ShardWriter, "seal", seals_then_fails)
    feeder = Feeder(home, staging={"frames_per_shard": 32})
    feeder.feed(range(32))
    feeder.feed(range(32, 64))
    assert feeder.finish()
    assert feeder.stager.kept == Accounting(frames_staged=64)
    assert staged(home)[1]["pulse_id"].tolist() == list(range(64))


def test_a_request_seals_everything_put_before_it_and_disappears(home):
    feeder = Feeder(home)
    request = home.edge_control / "seal-x"
    request.parent.mkdir(parents=True)
    request.touch()
    feeder.feed(range(20))
    feeder.feed(range(20, 40))
    assert feeder.stager.put(request)
    deadline = time.monotonic() + 5
    while request.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not request.exists()
    assert feeder.stager.kept.frames_staged == 40
    assert feeder.finish()


def test_old_shards_go_once_they_may(home, monkeypatch):
    monkeypatch.setattr(stager_module, "_EXPIRE_EVERY_S", 0.0)
    feeder = Feeder(home, staging={"frames_per_shard": 32, "keep_shards": 2})
    feeder.stager._may_expire = lambda shard_id: shard_id.endswith(("0", "2"))
    for start in range(0, 160, 32):
        feeder.feed(range(start, start + 32))
    assert feeder.finish()
    assert [shard.manifest.seq for shard in staged(home)[0]] == [1, 3, 4]


def test_a_ledger_in_trouble_does_not_stop_staging(home, monkeypatch):
    monkeypatch.setattr(stager_module, "_EXPIRE_EVERY_S", 0.0)
    feeder = Feeder(home, staging={"frames_per_shard": 32, "keep_shards": 1})

    def broken(shard_id):
        raise RuntimeError("database is locked")

    feeder.stager._may_expire = broken
    for start in range(0, 96, 32):
        feeder.feed(range(start, start + 32))
    assert feeder.finish()
    assert "database is locked" in feeder.gauges.last_problem
    assert feeder.stager.failure is None
    assert feeder.stager.kept.frames_staged == 96


def test_at_the_end_of_the_data_the_whole_queue_is_staged_however_long_it_takes(home, monkeypatch):
    slow_seals(monkeypatch, 0.05)
    feeder = Feeder(home, staging={"frames_per_shard": 32})
    for start in range(0, 640, 32):
        feeder.feed(range(start, start + 32))
    assert feeder.finish(deadline_s=0.01)
    assert feeder.stager.kept == Accounting(frames_staged=640)


def test_a_stop_does_not_wait_for_a_long_queue_and_counts_what_it_leaves(home, monkeypatch):
    slow_seals(monkeypatch, 0.05)
    feeder = Feeder(home, staging={"frames_per_shard": 32})
    for start in range(0, 3200, 32):
        feeder.feed(range(start, start + 32))
    begun_s = time.monotonic()
    assert feeder.finish(stop=True, deadline_s=0.2)
    assert time.monotonic() - begun_s < 1.5
    kept = feeder.stager.kept
    assert 0 < kept.frames_staged < 3200
    assert kept.frames_unstaged == {"stopped": 3200 - kept.frames_staged}
    shards, _ = staged(home)
    assert holds(shards[-1].manifest.accounting)


def slow_seals(monkeypatch, pause_s):
    write_group = ShardWriter._write_group

    def slow(self, path):
        time.sleep(pause_s)
        write_group(self, path)

    monkeypatch.setattr(ShardWriter, "_write_group", slow)


def test_beyond_the_hard_cap_the_oldest_go_though_nothing_was_trained_and_the_log_says_so(home, monkeypatch, caplog):
    monkeypatch.setattr(stager_module, "_EXPIRE_EVERY_S", 0.0)
    feeder = Feeder(home, staging={"frames_per_shard": 32, "keep_shards": 2, "max_shards": 3})
    with caplog.at_level(logging.WARNING, "filmloop"):
        for start in range(0, 192, 32):
            feeder.feed(range(start, start + 32))
        assert feeder.finish()
    assert [shard.manifest.seq for shard in staged(home)[0]] == [3, 4, 5]
    assert feeder.gauges.last_problem == "3 shards were removed untrained: more than max_shards = 3"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "though no cycle has trained" in line
    assert "max_shards = 3" in line


def test_the_hard_cap_holds_while_the_ledger_is_in_trouble(home, monkeypatch):
    monkeypatch.setattr(stager_module, "_EXPIRE_EVERY_S", 0.0)
    feeder = Feeder(home, staging={"frames_per_shard": 32, "keep_shards": 1, "max_shards": 2})

    def broken(shard_id):
        raise RuntimeError("database is locked")

    feeder.stager._may_expire = broken
    for start in range(0, 160, 32):
        feeder.feed(range(start, start + 32))
    assert feeder.finish()
    assert [shard.manifest.seq for shard in staged(home)[0]] == [3, 4]


def test_a_run_number_below_the_former_one_is_as_new_as_any(home, monkeypatch):
    """The seal fails after its commit: the newest shard, in the folder of the lower run, has to be found."""
    seal = ShardWriter.seal

    def seals_then_fails(self, **given):
        seal(self, **given)
        raise stager_module.TransientError("fsync of the folder failed") from OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(ShardWriter, "seal", seals_then_fails)
    feeder = Feeder(home)
    feeder.feed(range(32), run=7)
    feeder.feed(range(32), run=2)
    assert feeder.finish()
    assert feeder.stager.kept == Accounting(frames_staged=64)
    assert [shard.manifest.run_number for shard in staged(home)[0]] == [7, 2]
