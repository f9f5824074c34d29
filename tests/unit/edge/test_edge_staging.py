"""Staging: where shards are cut, what their manifests say, requests, and which frames are left out by policy."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import TransientError
from filmloop.edge.control import pending_requests, request_seal
from filmloop.edge.lock import only_edge
from filmloop.staging.reader import ShardReader
from filmloop.staging.sampling import Sampler
from filmloop.testing.edge import FRAME_SHAPE, pool, small_site, staged
from rigs.staging import Disk, Edge, exact, in_the_books, left_out, manifests
from rigs.waiting import until


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


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


def test_the_manifest_counts_the_frames_that_were_staged_while_the_beam_was_off(home):
    with Edge(home, staging={"frames_per_shard": 100, "frames_per_chunk": 10}) as edge:
        for part, off in enumerate((False, True, False)):
            findings = [{"kind": "beam_off"}] if off else []
            edge.ring.boards["inference"].write({"drift": {"findings": findings}})
            time.sleep(0.2)  # staging looks 20 times a second
            edge.feed_all(60, first=60 * part)
            until(lambda: edge.ring.staging.get("taken") == edge.head)
        edge.finish()
    found = [(manifest.frames, manifest.frames_dark, manifest.is_dark) for manifest in manifests(home)]
    assert found == [(100, 40, True), (80, 20, True)]
    assert "frames_dark" in next(home.stage.rglob("*.manifest.json")).read_text(encoding="utf-8")


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


def test_a_second_call_by_the_same_key_is_not_answered_with_the_frames_of_the_first(home, monkeypatch):
    disk = Disk(monkeypatch)
    with only_edge(home), Edge(home) as edge, ThreadPoolExecutor(1) as caller:
        edge.feed(range(20))
        with pytest.raises(TransientError):
            request_seal(home, "cycle-1", 0.3)
        edge.feed(range(20, 40))
        until(lambda: edge.counts["taken"] == 40)
        call = caller.submit(request_seal, home, "cycle-1", 10.0)
        until(lambda: pending_requests(home))
        disk.error = 0
        assert call.result() is True
        assert staged(home)[1]["pulse_id"].tolist() == list(range(40))


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


def test_staging_with_nothing_else_to_do_sheds_no_frame_however_short_the_ring_is_beside_a_chunk(home):
    # Shed above 51 frames; a chunk has 64.
    edge = Edge(home, live=True, frames=256, edge={"shed_at": 0.2})
    for start in range(0, 640, 16):
        edge.feed(range(start, start + 16))
        edge.stage._shed(edge.head)
        edge.stage._step(edge.head, flush=False)
    with edge:
        accounting = edge.finish()
    assert accounting == Accounting(frames_in=640, frames_inferred=640, frames_staged=640)


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


BAD_LABELS = {0: 70000, 50: np.nan, 51: np.inf, 130: -1e9, 199: 65520}


def some_labels_bad(frames):
    label = np.ones((frames, *FRAME_SHAPE), np.float32)
    label[list(BAD_LABELS), 3, 4] = list(BAD_LABELS.values())
    return label


def test_a_frame_whose_label_cannot_be_stored_costs_none_of_its_neighbours(home):
    with Edge(home, labelled=True) as edge:
        edge.feed(range(200), label=some_labels_bad(200))
        edge.feed(range(200, 240))
        accounting = edge.finish()
    assert accounting.frames_unstaged == {"bad_frame": 5}
    assert "not a finite" in edge.problem
    staged_ids = [number for _, number in in_the_books(home, accounting)]
    assert staged_ids == [number for number in range(240) if number not in BAD_LABELS]
    assert left_out(home) == [(0, 0, 1), (50, 51, 2), (130, 130, 1), (199, 199, 1)]


def test_a_frame_whose_label_cannot_be_stored_costs_nothing_of_a_sample_but_itself(home):
    with Edge(home, labelled=True, staging={"keep_every": 2}) as edge:
        edge.feed(range(200), label=some_labels_bad(200))
        accounting = edge.finish()
    picked_N, _ = Sampler(edge.config.staging).choose(np.arange(200, dtype=np.uint64))
    picked = set(np.flatnonzero(picked_N).tolist())
    assert picked & set(BAD_LABELS)
    staged_ids = [number for _, number in in_the_books(home, accounting)]
    assert staged_ids == sorted(picked - set(BAD_LABELS))
    assert set(accounting.frames_unstaged) == {"bad_frame", "not_sampled"}


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
