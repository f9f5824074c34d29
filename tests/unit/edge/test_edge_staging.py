"""The staging stage and its sealer on a ring that the test fills the way source and inference do."""

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
from filmloop.core.errors import TransientError
from filmloop.core.types import FrameBlock
from filmloop.edge.intake import Intake
from filmloop.edge.reporter import accounting_of
from filmloop.edge.ring import CAME_WITH, NOT_INFERRED, FrameRing, RingLayout
from filmloop.edge.stages import sealer as sealer_module
from filmloop.edge.stages.staging import StagingStage
from filmloop.staging.reader import ShardReader
from filmloop.staging.sampling import Sampler
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import FRAME_SHAPE, STREAM, pool, small_site, staged


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


class Edge:
    """A ring, what the other two stages would do to it, and a staging stage at work in a thread."""

    def __init__(self, home, *, live=False, frames=4096, labelled=False, may_expire=lambda _: False, **sections):
        self.home, self.config, self.live, self.may_expire = home, small_site(**sections), live, may_expire
        self.ring = FrameRing.new(RingLayout(frames=frames, frame_shape=FRAME_SHAPE, labelled=labelled))
        self.intake = Intake(FRAME_SHAPE, None, dict.fromkeys(CAME_WITH, 0))
        self.head = self.notes = 0
        self.failure = None
        self.stage = self.make()
        self.thread = threading.Thread(target=self._work)

    def make(self):
        """A life of the stage, not yet at work."""
        return StagingStage(
            self.ring, self.config, home=self.home, stream=STREAM, live=self.live, may_expire=self.may_expire
        )

    def _work(self):
        try:
            self.stage.main()
        except BaseException as exc:
            self.failure = exc

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        if self.thread.is_alive():
            self.end() if kind is None else self.stop()
        self.thread.join(20)
        self.ring.close()
        assert not self.thread.is_alive()
        if kind is None and self.failure is not None:
            raise self.failure

    def feed(self, ids, *, run=1, version=3, surprise=np.nan, label=None):
        """Frames in, inferred: what the source and the inference stage leave in the ring and in their cells."""
        ring, ids_D = self.ring, np.asarray(ids, np.uint64)
        block = FrameBlock(
            run_number=run, pulse_id_N=ids_D, counts_NCE=pool()[(ids_D % 64).astype(int)],
            flags_N=np.zeros(len(ids_D), np.uint8),
        )  # fmt: skip
        arrival = self.intake.admit(block)
        for each in arrival.passed:
            self.note(each)
        frames = len(arrival.block)
        until(lambda: self.head + frames - ring.staging.get("taken") <= ring.frames)
        at = np.arange(self.head, self.head + frames) % ring.frames
        ring.pulse_id_F[at], ring.counts_FCE[at] = arrival.block.pulse_id_N, arrival.block.counts_NCE
        ring.run_number_F[at], ring.flags_F[at], ring.arrived_ns_F[at] = run, 0, time.monotonic_ns()
        ring.came_with_FK[at], ring.version_F[at] = arrival.came_with_NK, version
        ring.phase_F[at], ring.surprise_F[at] = 0.5, surprise
        if ring.label_FCE is not None:
            ring.label_FCE[at] = arrival.block.counts_NCE if label is None else label
        self.head += frames
        self.tell_source()
        kind = {0: "no_model", NOT_INFERRED: "stopped"}.get(version, "inferred")
        inference = ring.inference.read()
        ring.inference.write({**inference, "done": self.head, kind: inference[kind] + frames})
        ring.bells["staging"].ring()

    def feed_all(self, frames, *, size=32, first=0, **given):
        for start in range(first, first + frames, size):
            self.feed(range(start, min(start + size, first + frames)), **given)

    def note(self, passed):
        self.ring.write_note(self.notes, self.head, passed)
        self.notes += 1

    def tell_source(self, **more):
        values = {**self.ring.source.read(), "head": self.head, "notes": self.notes, **self.intake.counts, **more}
        self.ring.source.write(values)

    def end(self):
        """The data have ended."""
        self.tell_source(ended=1)
        self.ring.inference.write({**self.ring.inference.read(), "ended": 1})
        self.ring.bells["staging"].ring()

    def stop(self, *, hurry=1):
        self.ring.control.write({"stop": 1, "hurry": hurry})
        self.end()

    def finish(self):
        self.end()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return accounting_of(self.ring)

    def killed(self):
        """The stage as a SIGKILL leaves it: its memory is gone, nothing is sealed any more."""
        self.stage._sealer.give_up()
        self.stage._sealer.end()
        return self.make()

    @property
    def counts(self):
        return self.ring.staging.read()

    @property
    def problem(self):
        self.stage.news.publish(at_once=True)
        return self.ring.boards["staging"].read().get("problem", "")


def until(true, deadline_s=10.0):
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.005)


def work_off(life):
    """One life of the stage, by hand, as far as the ring goes."""
    while life._step(life.ring.inference.get("done"), flush=True):
        pass


def exact(accounting):
    assert accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())
    assert accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())
    return accounting


def manifests(home):
    return [shard.manifest for shard in staged(home)[0]]


def left_out(home, reason=None):
    """(first, last, frames) of every range in the manifests, in order."""
    return [
        (left.first_pulse_id, left.last_pulse_id, left.frames)
        for manifest in manifests(home)
        for left in manifest.dropped
        if reason in (None, left.reason)
    ]


def in_the_books(home, accounting):
    """Every manifest balances, and no frame is staged twice."""
    for manifest in manifests(home):
        exact(manifest.accounting)
    frames = staged(home)[1]
    pairs = list(zip(frames["run"].tolist(), frames["pulse_id"].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == exact(accounting).frames_staged
    return pairs


def test_shards_are_cut_where_they_are_full_and_each_manifest_is_exact_at_its_last_frame(home):
    with Edge(home) as edge:
        edge.feed_all(600, size=50)
        accounting = edge.finish()
    shards, frames = staged(home)
    assert [shard.manifest.frames for shard in shards] == [256, 256, 88]
    assert frames["pulse_id"].tolist() == list(range(600))
    assert (frames["counts"] == pool()[np.arange(600) % 64]).all()
    assert (frames["version"] == 3).all()
    assert (frames["phase"] == 0.5).all()
    for shard, end in zip(shards, (256, 512, 600), strict=True):
        assert shard.manifest.accounting == Accounting(frames_in=end, frames_inferred=end, frames_staged=end)
    assert accounting == shards[-1].manifest.accounting


def test_the_manifest_says_which_gains_were_corrected_and_the_counts_stay_raw(home):
    with Edge(home) as edge:
        told = {"drift": {"gain": {"gain_C": [1.0, 0.5, 1.0, 1.0], "dead": [3]}}}
        edge.ring.boards["inference"].write(told)
        edge.feed_all(64)
        edge.finish()
    shards, columns = staged(home)
    assert [shard.manifest.input_gain for shard in shards] == [(1.0, 0.5, 1.0, 0.0)]
    np.testing.assert_array_equal(columns["counts"], pool())


def test_frames_go_through_a_ring_much_shorter_than_a_shard_and_a_chunk(home):
    with Edge(home, frames=48, staging={"frames_per_shard": 500, "frames_per_chunk": 100}) as edge:
        edge.feed_all(1200, size=7)
        edge.finish()
    assert staged(home)[1]["pulse_id"].tolist() == list(range(1200))
    assert [manifest.frames for manifest in manifests(home)] == [500, 500, 200]


def test_a_run_change_seals_and_a_lower_run_number_is_as_new_as_any(home):
    with Edge(home) as edge:
        edge.feed(range(10), run=7)
        edge.feed(range(5), run=2)
        edge.finish()
    assert [(manifest.run_number, manifest.frames) for manifest in manifests(home)] == [(7, 10), (2, 5)]
    assert len({manifest.seq for manifest in manifests(home)}) == 2


def test_an_open_shard_is_sealed_after_its_time_though_no_frame_comes(home):
    with Edge(home, staging={"seal_after_s": 0.2}) as edge:
        edge.feed(range(10))
        until(lambda: edge.counts["sealed"] == 10)
        assert edge.counts["open_frames"] == 0


def test_frames_without_a_model_are_staged_all_the_same_and_counted_as_such(home):
    with Edge(home) as edge:
        edge.feed(range(10), version=0)
        edge.feed(range(10, 30))
        accounting = edge.finish()
    (manifest,) = manifests(home)
    assert manifest.accounting == accounting
    assert accounting.frames_dropped == {"no_model": 10}
    assert manifest.model_versions == {"0": 10, "3": 20}


def test_what_the_source_let_pass_is_in_the_manifest_of_the_shard_whose_frame_came_next(home):
    with Edge(home) as edge:
        edge.feed(range(256))
        edge.note(PulseRange(first_pulse_id=256, last_pulse_id=257, frames=2, reason="bad_frame", run_number=1))
        edge.intake.counts["bad_frame"] += 2
        edge.intake.counts["frames_in"] += 2
        edge.feed(range(258, 300))
        edge.note(PulseRange(first_pulse_id=3, last_pulse_id=3, frames=1, reason="late", run_number=1))
        edge.intake.counts["late"] += 1
        edge.intake.counts["frames_in"] += 1
        edge.tell_source()
        accounting = edge.finish()
    first, second = manifests(home)
    assert first.dropped == ()
    assert first.accounting.frames_in == 256
    # The late one came behind the last frame: no shard's manifest is about it, the final count is.
    assert [(left.first_pulse_id, left.reason) for left in second.dropped] == [(256, "bad_frame")]
    assert exact(second.accounting).frames_in == 300
    assert exact(accounting).frames_in == 301


def test_what_is_missing_and_out_of_order_is_that_of_the_last_frame_of_each_shard(home):
    with Edge(home, staging={"frames_per_shard": 4, "frames_per_chunk": 2}) as edge:
        edge.feed([0, 1, 5, 3])
        edge.feed([4, 6, 7, 9])
        edge.finish()
    assert [(m.accounting.frames_missing, m.accounting.frames_out_of_order) for m in manifests(home)] == [
        (2, 1),
        (2, 2),
    ]


class Disk:
    """A disk that refuses to write groups while `error` is set."""

    def __init__(self, monkeypatch, error=errno.ENOSPC):
        self.error, self.tries, self.pause_s = error, [], 0.0
        write_group = ShardWriter._write_group

        def write(writer, path):
            self.tries.append(time.monotonic())
            time.sleep(self.pause_s)
            if self.error:
                raise OSError(self.error, "No space left on device")
            return write_group(writer, path)

        monkeypatch.setattr(ShardWriter, "_write_group", write)


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


def request(home, key):
    path = home.edge_control / f"seal-{key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_request_seals_everything_that_came_before_it_and_disappears(home):
    with Edge(home) as edge:
        edge.feed(range(20))
        edge.feed(range(20, 40))
        asked = request(home, "x")
        until(lambda: not asked.exists())
        assert staged(home)[1]["pulse_id"].tolist() == list(range(40))
        again = request(home, "nothing-is-open")
        until(lambda: not again.exists())
    assert len(manifests(home)) == 1


def test_a_request_waits_for_frames_that_are_not_inferred_yet(home):
    with Edge(home) as edge:
        edge.feed(range(20))
        until(lambda: edge.counts["taken"] == 20)
        # Ten more are in, inference has not come to them.
        edge.head += 10
        edge.tell_source()
        asked = request(home, "x")
        time.sleep(0.2)
        assert asked.exists()
        edge.head -= 10
        edge.feed(range(20, 30))
        until(lambda: not asked.exists())
        assert staged(home)[1]["pulse_id"].tolist() == list(range(30))


def test_a_request_by_the_same_key_is_answered_again(home):
    with Edge(home) as edge:
        for turn in range(3):
            edge.feed(range(10 * turn, 10 * turn + 10))
            asked = request(home, "cycle-1")
            until(lambda asked=asked: not asked.exists())
            assert edge.ring.staging.get("taken") == 10 * turn + 10
            assert staged(home)[1]["pulse_id"].size == 10 * turn + 10
            time.sleep(0.12 if turn else 0.0)


def test_a_request_is_not_answered_while_the_disk_refuses_and_is_once_it_does_not(home, monkeypatch):
    disk = Disk(monkeypatch)
    with Edge(home) as edge:
        edge.feed(range(20))
        asked = request(home, "x")
        until(lambda: len(disk.tries) >= 2)
        assert asked.exists()
        disk.error = 0
        until(lambda: not asked.exists())
        assert staged(home)[1]["pulse_id"].size == 20


def test_a_request_that_cannot_be_taken_away_stops_nothing(home, monkeypatch):
    with Edge(home) as edge:
        edge.feed(range(20))
        asked = home.edge_control / "seal-folder"
        asked.mkdir(parents=True)
        until(lambda: edge.counts["sealed"] == 20)
        edge.feed(range(20, 40))
        time.sleep(0.3)
        accounting = edge.finish()
    assert accounting.frames_staged == 40
    assert len(manifests(home)) == 2, "it is answered once"
    assert "seal-folder" in edge.problem


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


def test_at_the_end_of_the_data_everything_is_staged_however_long_it_takes(home, monkeypatch):
    disk = Disk(monkeypatch, 0)
    disk.pause_s = 0.05
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(640)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=640, frames_inferred=640, frames_staged=640)


def test_an_overdue_stop_counts_what_it_leaves_and_the_manifests_are_exact_at_their_last_frame(home, monkeypatch):
    """A source that can go back brings the rest again behind the last staged frame: it must not be counted yet."""
    disk = Disk(monkeypatch, 0)
    disk.pause_s = 0.2
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(1600)
        edge.ring.control.write({"stop": 1, "hurry": 0})
        until(lambda: edge.counts["sealed"] >= 32)
        edge.feed_all(64, first=1600, version=NOT_INFERRED)
        begun_s = time.monotonic()
        edge.stop()
        accounting = edge.finish()
        assert time.monotonic() - begun_s < 2.0
    assert 0 < accounting.frames_staged < 1600
    assert accounting.frames_dropped == {"stopped": 64}
    assert set(accounting.frames_unstaged) == {"stopped"}
    in_the_books(home, accounting)
    last = manifests(home)[-1]
    assert last.accounting.frames_in == last.last_pulse_id + 1 == last.accounting.frames_staged
    assert last.dropped == ()


def test_frames_left_out_behind_the_last_one_of_a_shard_are_in_the_next_manifest(home, monkeypatch):
    disk = Disk(monkeypatch)
    with Edge(home, staging={"frames_per_shard": 32}) as edge:
        edge.feed_all(128)
        until(lambda: edge.counts["disk_full"] == 32)
        disk.error = 0
        until(lambda: edge.counts["sealed"] >= 64)
        edge.feed_all(32, first=128)
        accounting = edge.finish()
    in_the_books(home, accounting)
    assert [m.accounting.frames_in for m in manifests(home)] == [32, 64, 96, 160]
    assert [len(m.dropped) for m in manifests(home)] == [0, 0, 0, 1]


def test_a_live_source_sheds_its_oldest_frames_and_says_exactly_which(home, monkeypatch):
    disk = Disk(monkeypatch, 0)
    disk.pause_s = 0.15
    edge = Edge(home, live=True, frames=256, staging={"frames_per_shard": 64}, edge={"shed_at": 0.5})
    with edge:
        edge.feed_all(1600, size=16)
        edge.feed_all(64, first=1600, run=2, size=16)
        accounting = edge.finish()
    shed = accounting.frames_unstaged["queue_full"]
    assert 0 < shed < 1600
    pairs = in_the_books(home, accounting)
    there = {number for run, number in pairs if run == 1}
    last = max(m.last_pulse_id for m in manifests(home) if m.run_number == 1)
    told = [left for m in manifests(home) for left in m.dropped]
    assert {left.reason for left in told} == {"queue_full"}
    gone = [
        number for left in told if left.run_number == 1 for number in range(left.first_pulse_id, left.last_pulse_id + 1)
    ]
    assert sorted(set(range(last + 1)) - there) == sorted(number for number in gone if number <= last)
    assert sum(left.frames for left in told) == sum(left.last_pulse_id - left.first_pulse_id + 1 for left in told)
    assert "cannot keep up" in edge.problem


def test_a_source_that_can_wait_is_never_shed(home, monkeypatch):
    disk = Disk(monkeypatch, 0)
    disk.pause_s = 0.05
    with Edge(home, frames=256, staging={"frames_per_shard": 64}) as edge:
        edge.feed_all(1600, size=16)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=1600, frames_inferred=1600, frames_staged=1600)


def test_a_sample_is_staged_with_its_weights_and_the_rest_is_counted(home):
    surprise = np.where(np.arange(2000) % 100 == 0, 9.0, 0.1).astype(np.float32)
    staging = {"keep_every": 8, "keep_surprising": 0.01, "frames_per_shard": 8192}
    with Edge(home, staging=staging) as edge:
        for start in range(0, 2000, 50):
            edge.feed(range(start, start + 50), surprise=surprise[start : start + 50])
            # A threshold holds from the block after those that it was learned from.
            until(lambda upto=start + 50: edge.ring.staging.get("taken") == upto)
        accounting = edge.finish()
    (manifest,) = manifests(home)
    reader = ShardReader(staged(home)[0][0].manifest_path)
    ids = reader.pulse_id_N
    assert accounting.frames_staged == len(ids) == manifest.frames
    assert accounting.frames_unstaged == {"not_sampled": 2000 - len(ids)}
    assert exact(manifest.accounting).frames_in <= 2000
    # The hash picks one in eight; beside them come, with weight 1, those that surprise once there is a threshold.
    picked = {int(n) for n in np.arange(2000) if Sampler(edge.config.staging).choose(np.array([n], np.uint64))[0][0]}
    surprising = set(ids.tolist()) - picked
    assert 5 <= len(surprising) <= 30
    assert {number % 100 for number in surprising} == {0}
    weight_of = dict(zip(ids.tolist(), reader.weight_N.tolist(), strict=True))
    assert {weight_of[number] for number in surprising} == {1.0}
    assert {weight_of[number] for number in picked} <= {1.0, 8.0}
    assert manifest.dropped == (), "what is not sampled is a policy, no gap"


def test_a_run_of_which_nothing_is_sampled_does_not_hold_up_the_next_one(home):
    sampler = Sampler(small_site(staging={"keep_every": 50}).staging)
    none = [int(n) for n in range(2000) if not sampler.choose(np.array([n], np.uint64))[0][0]][:20]
    with Edge(home, staging={"keep_every": 50}) as edge:
        edge.feed(none, run=1)
        edge.feed(range(2000), run=2)
        edge.feed(none, run=3)
        accounting = edge.finish()
    assert {manifest.run_number for manifest in manifests(home)} == {2}
    assert accounting.frames_staged > 0
    in_the_books(home, accounting)


def test_frames_that_no_shard_takes_are_bad_and_do_not_hold_up_the_next_run(home):
    with Edge(home, labelled=True) as edge:
        edge.feed(range(20), run=1, label=np.nan)
        edge.feed(range(20), run=2)
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"bad_frame": 20}
    assert "not a finite" in edge.problem
    in_the_books(home, accounting)
    assert [(left.run_number, left.frames, left.reason) for m in manifests(home) for left in m.dropped] == [
        (1, 20, "bad_frame")
    ]


def test_a_killed_life_costs_its_open_shards_counted_once_and_nothing_is_staged_twice(home):
    edge = Edge(home, staging={"frames_per_shard": 64})
    edge.stage._sealer.start()
    edge.feed_all(64)
    work_off(edge.stage)
    until(lambda: edge.stage._sealer.sealed == 64)
    edge.feed_all(40, first=64)
    work_off(edge.stage)
    assert edge.counts["taken"] == 104
    edge.stage = edge.killed()
    # Life two is killed before it has done anything, life three seals.
    edge.stage = edge.killed()
    with edge:
        edge.feed_all(100, first=104)
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"staging_killed": 40}
    assert [number for _, number in in_the_books(home, accounting)] == [*range(64), *range(104, 204)]
    assert left_out(home) == [(64, 103, 40)]


def test_kills_in_a_row_add_up_and_every_lost_frame_is_told_in_a_manifest(home):
    edge = Edge(home, staging={"frames_per_shard": 64})
    edge.stage._sealer.start()
    edge.feed_all(64)
    work_off(edge.stage)
    until(lambda: edge.stage._sealer.sealed == 64)
    for life in range(3):
        edge.feed_all(10, first=64 + 10 * life)
        work_off(edge.stage)
        edge.stage = edge.killed()
    assert edge.stage._book.totals["staging_killed"] == 30
    with edge:
        edge.feed_all(100, first=94)
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"staging_killed": 30}
    pairs = in_the_books(home, accounting)
    assert [number for _, number in pairs] == [*range(64), *range(94, 194)]
    told = left_out(home, "staging_killed")
    assert sum(frames for _, _, frames in told) == 30
    assert {n for first, last, _ in told for n in range(first, last + 1)} == set(range(64, 94))


def test_what_a_kill_has_cost_in_a_new_run_is_told_with_the_numbers_of_that_run(home):
    edge = Edge(home)
    edge.stage._sealer.start()
    edge.feed(range(1000, 1100), run=1)
    edge.feed(range(5, 25), run=2)
    work_off(edge.stage)
    until(lambda: edge.stage._sealer.sealed == 100)
    edge.stage = edge.killed()
    with edge:
        edge.feed(range(25, 30), run=2)
        accounting = edge.finish()
    in_the_books(home, accounting)
    assert left_out(home) == [(5, 24, 20)]


def test_frames_that_a_killed_life_had_not_passed_are_taken_by_the_next_one(home):
    edge = Edge(home)
    edge.stage._sealer.start()
    edge.feed(range(10))
    # Killed between the append and the move of the cursor.
    edge.stage._append(edge.stage._open(1), edge.ring.span(0, 10))
    edge.stage = edge.killed()
    with edge:
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=10, frames_inferred=10, frames_staged=10)


def test_a_shard_whose_commit_a_kill_had_cut_off_is_sealed_and_counted(home, monkeypatch):
    import filmloop.staging.writer as writer_module

    edge = Edge(home, staging={"frames_per_shard": 32})
    replace, renames = writer_module.os.replace, []

    def dies_at_the_second(source, target):
        renames.append(target)
        if len(renames) == 2:
            raise SystemExit
        replace(source, target)

    edge.feed_all(32)
    work_off(edge.stage)
    with monkeypatch.context() as patch:
        # What the sealer does when the kill comes between its two renames; it cleans up nothing.
        patch.setattr(writer_module.os, "replace", dies_at_the_second)
        patch.setattr(writer_module.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(writer_module.Path, "unlink", lambda *_, **__: None)
        (closed,) = edge.stage._sealer._closed
        with pytest.raises(SystemExit):
            closed.writer.seal(accounting=Accounting(frames_in=32, frames_inferred=32, frames_staged=32))
    edge.stage = edge.killed()
    with edge:
        edge.feed_all(32, first=32)
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=64, frames_inferred=64, frames_staged=64)
    assert [number for _, number in in_the_books(home, accounting)] == list(range(64))
