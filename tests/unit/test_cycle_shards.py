"""Which shards a cycle takes, holds, sets aside and leaves on the cluster."""

from __future__ import annotations

import errno
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from filmloop.core.errors import DataError, TrainingError, TransientError
from filmloop.core.fsio import disk_errors, read_json, sha256_file
from filmloop.ledger import DAMAGED, TRAINED
from filmloop.staging.groupfiles import GroupFiles
from filmloop.staging.retention import expire
from rigs.cycle import World


def test_too_few_frames_is_nothing_to_do_and_leaves_the_shards_fresh(world: World) -> None:
    world.stage(1)
    report = world.cycle()
    assert report.outcome == "nothing_to_do"
    assert "32 fresh frames" in report.message
    assert (world.trainer.submitted, world.ledger.shard_states(), world.champion()) == ([], {}, "")
    assert not list(world.home.cycles.glob("*/recall")), "the scorer that was loading is gone"


def test_a_failed_training_ships_nothing_and_the_next_cycle_begins_anew_with_the_same_shards(world: World) -> None:
    world.stage()
    with pytest.raises(TrainingError, match=r"loss is nan(.|\n)*step 12 loss nan") as caught:
        world.cycle("fail")
    assert caught.value.ids["cycle_id"]
    assert (world.ledger.history()[0].outcome, world.registry.versions()) == ("failed", [])
    report = world.cycle("win")
    assert (report.outcome, report.frames) == ("promoted", 64)


def test_a_shard_that_vanished_after_it_was_chosen_fails_the_cycle_with_its_name(world: World) -> None:
    world.stage()
    with pytest.raises(TransientError):
        world.cycle("hang_up")
    for path in (world.home.stage / "test/run000001").glob("00000001*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match="test/run000001/00000001") as caught:
        world.cycle("win")
    assert "shards verify" in caught.value.hint


def test_a_damaged_shard_is_set_aside_once_and_the_cycle_goes_on_without_it(world: World) -> None:
    world.stage(count=3)
    counts = world.home.stage / "test/run000001/00000001.zarr/counts/c/0/0/0"
    data = bytearray(counts.read_bytes())
    data[len(data) // 2] ^= 1
    counts.write_bytes(data)
    report = world.cycle("win")
    assert (report.outcome, report.frames) == ("promoted", 64)
    states = world.ledger.shard_states()
    assert states["test/run000001/00000001"] == DAMAGED
    assert not world.ledger.may_expire("test/run000001/00000001"), "a person may want to look at it"
    world.stage(count=2)
    world.cycle("win", again=True)
    chosen = {ref.shard_id for ref in world.trainer.jobs[-1].fresh + world.trainer.jobs[-1].replay}
    assert "test/run000001/00000001" not in chosen


def test_what_the_trainer_found_damaged_is_sent_anew_by_the_next_cycle(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    with pytest.raises(DataError, match="SHA-256"):
        world.cycle("find_damage")
    assert [path for path in world.home.cluster.rglob("*") if path.is_file() and "runs" not in path.parts] == []
    assert world.cycle("win").outcome == "promoted"
    assert len(world.trainer.jobs[-1].fresh) == 2


def test_the_cluster_keeps_what_the_next_cycle_mixes_in_and_nothing_else(world: World) -> None:
    world.stage(count=3)
    report = world.cycle("win")
    assert not (world.home.cluster / "runs" / report.cycle_id).exists()
    left = sorted(path.name for path in (world.home.cluster / "data/test/run000001").iterdir())
    assert left == ["00000002.manifest.json", "00000002.zarr"], "replay_frames = 40 is one shard of 32"


def test_shards_that_a_failed_cycle_had_shipped_go_when_no_cycle_needs_them(world: World) -> None:
    training = world.parts.config.training.model_copy(update={"max_fresh_frames": 64})
    world.parts = replace(world.parts, config=world.parts.config.model_copy(update={"training": training}))
    world.stage(count=2)
    with pytest.raises(TrainingError):
        world.cycle("fail")
    there = world.home.cluster / "data/test/run000001"
    assert len(list(there.iterdir())) == 4, "the next cycle may choose them again"
    world.stage(count=2)
    assert world.cycle("win").outcome == "promoted"
    assert sorted(path.name for path in there.iterdir()) == ["00000003.manifest.json", "00000003.zarr"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyError("value"), TransientError("away")])
def test_tidying_never_changes_how_a_cycle_ended(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def discard(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(world.parts.mover, "discard", discard)
    world.stage()
    report = world.cycle("win")
    assert report.outcome == "promoted"
    assert [row.outcome for row in world.ledger.history()] == ["promoted"]
    assert read_json(world.home.cycles / report.cycle_id / "summary.json")["outcome"] == "promoted"
    world.stage()
    with pytest.raises(TrainingError):
        world.cycle("fail")
    assert [row.outcome for row in world.ledger.history()] == ["failed", "promoted"]


def test_shards_that_a_cycle_reads_cannot_expire_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.change(replay_frames=1000)
    world.stage(count=4)
    world.cycle("win")
    world.stage()
    check_all, gone = GroupFiles.check_all, []

    def while_reading(files: GroupFiles, *, hashed: bool) -> None:
        gone.extend(expire(world.home.stage, "test", 3, world.ledger.may_expire))
        check_all(files, hashed=hashed)

    monkeypatch.setattr(GroupFiles, "check_all", while_reading)
    assert world.cycle("win").outcome == "promoted"
    assert len(world.trainer.jobs[-1].replay) == 4
    assert gone == []
    assert expire(world.home.stage, "test", 3, world.ledger.may_expire), "they may go when the cycle is over"


def test_a_shard_that_expired_before_the_cycle_held_it_is_not_called_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change(replay_frames=1000)
    world.stage(count=3)
    world.cycle("win")
    world.stage()
    choose = world.ledger.choose_shards

    def late(cycle_id: str, shard_ids: list[str]) -> None:
        expire(world.home.stage, "test", 4, world.ledger.may_expire)
        choose(cycle_id, shard_ids)

    monkeypatch.setattr(world.ledger, "choose_shards", late)
    assert world.cycle("win").outcome == "promoted"
    assert DAMAGED not in world.ledger.shard_states().values()
    assert len(world.trainer.jobs[-1].replay) == 2


def test_a_shard_on_a_bad_sector_is_set_aside_like_any_other_damage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        with disk_errors(path):
            if "00000001.zarr" in str(path):
                raise OSError(errno.EIO, "Input/output error")
        return sha256_file(path)

    monkeypatch.setattr("filmloop.staging.groupfiles.sha256_file", read)
    world.stage(count=3)
    assert world.cycle("win").outcome == "promoted"
    assert world.ledger.shard_states()["test/run000001/00000001"] == DAMAGED


def test_a_disk_that_refuses_for_now_sets_no_shard_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> str:
        with disk_errors(path):
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("filmloop.staging.groupfiles.sha256_file", read)
    world.stage()
    with pytest.raises(TransientError, match="Stale file handle"):
        world.cycle("win")
    monkeypatch.undo()
    assert world.cycle("win").outcome == "promoted"
    assert set(world.ledger.shard_states().values()) == {TRAINED}


def test_with_labels_wanted_shards_without_them_are_left_alone(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage(count=3)
    world.change(hyper={"mode": "labelled"})
    report = world.cycle("win")
    assert (report.outcome, len(world.trainer.jobs)) == ("nothing_to_do", 1)
    assert "fresh labelled frames" in report.message
    world.stage(labelled=True)
    assert world.cycle("win").outcome == "promoted"
    job = world.trainer.jobs[-1]
    assert [ref.shard_id[-1] for ref in job.fresh] == ["5", "6"]
    assert job.replay == ()


def test_shards_from_a_time_without_beam_are_neither_trained_on_nor_judged_by(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage(count=3, dark=32)
    report = world.cycle("win")
    assert (report.outcome, len(world.trainer.jobs)) == ("nothing_to_do", 1)
    assert "96 more from a time without beam" in report.message
    world.stage(dark=3)  # a trip of the beam: less than a tenth
    assert world.cycle("win").outcome == "promoted"
    job = world.trainer.jobs[-1]
    assert [ref.shard_id[-1] for ref in job.fresh] == ["5", "6"]
    assert [ref.shard_id[-1] for ref in job.replay] == ["1"], "dark shards take no place among the older ones"


def test_with_the_clock_set_back_a_finished_cycle_keeps_what_a_rerun_reads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        (world.home.cycles / f"c2999010{number // 10}-00000{number % 10}-aaaa").mkdir(parents=True)
    world.stage()
    finish_cycle = world.ledger.finish_cycle

    def cut_off(*_: Any, **__: Any) -> None:
        raise TransientError("The journal's disk is full.")

    monkeypatch.setattr(world.ledger, "finish_cycle", cut_off)
    with pytest.raises(TransientError):
        world.cycle("win")
    monkeypatch.setattr(world.ledger, "finish_cycle", finish_cycle)
    assert world.cycle().outcome == "promoted"


def test_run_folders_of_failed_cycles_go_however_seldom_one_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()  # ids hold seconds, in which a site begins one cycle and this test hundreds
    monkeypatch.setattr("filmloop.ledger.new_id", lambda letter: f"{letter}{next(numbers):04}")
    runs = world.home.cluster / "runs"
    failed = []
    for _ in range(5):
        world.stage()
        with pytest.raises(TrainingError) as caught:
            world.cycle("fail")
        failed.append(caught.value.ids["cycle_id"])
        (runs / failed[-1]).mkdir(parents=True, exist_ok=True)
        (runs / failed[-1] / "run.log").touch()
        for _ in range(60):
            world.ledger.finish_cycle(world.ledger.start_cycle().cycle_id, "nothing_to_do", {})
    world.cycle("win", again=True)
    assert sorted(path.name for path in runs.iterdir()) == sorted(failed[-3:])
