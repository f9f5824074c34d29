"""How staging ends: at the end of the data, at a stop, and killed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting
from filmloop.edge.ring import NOT_INFERRED
from rigs.staging import Disk, Edge, in_the_books, left_out, manifests, work_off
from rigs.waiting import until


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


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


def test_what_a_kill_has_cost_before_a_new_run_had_a_frame_in_its_shard_is_told_with_the_run_that_it_was_of(
    home, monkeypatch
):
    disk = Disk(monkeypatch)
    edge = Edge(home, labelled=True)
    edge.stage._sealer.start()
    edge.feed(range(1000, 1020), run=1)
    edge.feed(range(5, 25), run=2, label=np.nan)
    work_off(edge.stage)
    until(lambda: edge.stage._sealer.trouble)
    edge.stage = edge.killed()
    disk.error = 0
    with edge:
        edge.feed(range(25, 30), run=2)
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"bad_frame": 20, "staging_killed": 20}
    in_the_books(home, accounting)
    ((lost,),) = [[left for left in m.dropped if left.reason == "staging_killed"] for m in manifests(home)]
    assert (lost.run_number, lost.first_pulse_id, lost.last_pulse_id, lost.frames) == (1, 1000, 1019, 20)


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
