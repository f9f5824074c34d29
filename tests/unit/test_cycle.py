"""The cycle with everything real but the trainer and the registry server: ledger, shards, mover, gate, files."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from filmloop.adapters.local.mover import LocalMover
from filmloop.bundle import file_digests
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import EvaluationReport, FileDigest, TrainJob
from filmloop.core.errors import AuthError, ConfigError, DataError, TrainingError, TransientError
from filmloop.core.fsio import disk_errors, read_json, sha256_file
from filmloop.cycle import run_cycle
from filmloop.journal import CycleParts
from filmloop.ledger import DAMAGED, TRAINED, Ledger
from filmloop.ports.launcher import LaunchStatus
from filmloop.ports.registry import CHALLENGER, CHAMPION
from filmloop.promotion.publish import promote, rollback
from filmloop.staging.groupfiles import GroupFiles
from filmloop.staging.retention import expire
from filmloop.testing.bundles import make_bundle, small_report
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.shards import example_block, write_shard

FRAME_SHAPE = (4, 8)
Act = Literal["win", "lose", "tie", "fail", "find_damage", "lose_job", "hang_up", "lock_out"]


@dataclass
class ScriptedTrainer:
    """A launcher whose jobs end at once, as told: one act a submit, the last one for ever."""

    acts: list[Act]
    submitted: list[str] = field(default_factory=list)
    jobs: list[TrainJob] = field(default_factory=list)

    def submit(self, job: TrainJob) -> str:
        self.jobs.append(job)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        self.submitted.append(act)
        if act == "hang_up":
            raise TransientError("The service is away.")
        if act == "lock_out":
            raise AuthError("The login has ended.")
        for ref in job.fresh + job.replay:
            assert Path(ref.manifest_path).is_file(), "the job names shards where they lie on the cluster"
        if act in ("win", "lose", "tie"):
            shutil.rmtree(job.output_dir, ignore_errors=True)
            make_bundle(
                Path(job.output_dir) / "bundle",
                seed=len(self.jobs),
                job_id=job.job_id,
                base_version=job.base.version if job.base else "",
                reports=_reports(act, champion=job.champion.version if job.champion else ""),
            )
        return f"{act} {job.output_dir}"

    def poll(self, handle: str) -> LaunchStatus:
        act, folder = handle.split(" ", 1)
        if act == "lose_job":
            return LaunchStatus(state="lost", detail="the node went away")
        if act == "fail":
            return LaunchStatus(state="failed", exit_code=6, detail="loss is nan", log_tail="step 12 loss nan")
        if act == "find_damage":
            return LaunchStatus(state="failed", exit_code=5, error="DataError", detail="counts has another SHA-256")
        bundle = Path(folder) / "bundle"
        files = (*file_digests(bundle), FileDigest.of(bundle / "result.json", bundle))
        return LaunchStatus(state="succeeded", exit_code=0, bundle_files=files)

    def cancel(self, handle: str) -> None:
        self.submitted.append(f"cancelled {handle.split(' ')[0]}")


def _reports(act: str, *, champion: str) -> dict[str, EvaluationReport]:
    # 400 frames, spread 5 nats: a shift of 1 nat is 4 standard errors of the unpaired mean and exact when paired.
    base = tuple(float(x) for x in np.random.default_rng(0).normal(60.0, 5.0, 400))
    shift = {"win": -1.0, "lose": 1.0, "tie": 0.0}[act]
    reports = {
        "challenger": small_report("challenger", tuple(x + shift for x in base)),
        "gaussian": small_report("gaussian", base),
    }
    if champion:
        reports["champion"] = small_report("champion", base).model_copy(update={"version": champion})
    return reports


@dataclass
class World:
    """One site on one machine."""

    parts: CycleParts
    trainer: ScriptedTrainer
    registry: MemoryRegistry
    ledger: Ledger
    home: Home
    shards: int = 0

    def stage(self, count: int = 2, frames: int = 32, *, labelled: bool = False, dark: int = 0) -> None:
        for _ in range(count):
            first = self.shards * frames
            block = example_block(frames, first_pulse_id=first, frame_shape=FRAME_SHAPE, labelled=labelled)
            write_shard(self.home.stage, block, stream="test", seq=self.shards, frames_dark=dark)
            self.shards += 1

    def change(self, **training: Any) -> None:
        config = self.parts.config.as_json()
        config["training"] |= training
        self.parts = replace(self.parts, config=parse_site(config))

    def cycle(self, *acts: Act, again: bool = False):  # type: ignore[no-untyped-def]
        if acts:
            self.trainer.acts[:] = acts
        return run_cycle(self.parts, again=again, tell=lambda step, text: None)

    def champion(self) -> str:
        found = self.registry.get(CHAMPION)
        return found.version if found else ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = Home(tmp_path / "home")
    config = parse_site(
        {
            "frame": {"channels": 4, "energy_bins": 8},
            "training": {"min_frames": 50, "max_fresh_frames": 1000, "replay_frames": 40},
            "gate": {"min_frames": 100},
        }
    )
    trainer, registry = ScriptedTrainer(["win"]), MemoryRegistry(tmp_path / "registry")
    mover = LocalMover(edge_root=home.root, cluster_root=home.cluster, journal=home.moves, section=config.mover)
    with Ledger(home.ledger) as ledger:
        parts = CycleParts(
            config=config, home=home, ledger=ledger, mover=mover, launcher=trainer, registry=registry, stream="test",
            frame_shape=FRAME_SHAPE, cluster_root=home.cluster, code_commit="abc", poll_s=0.02,
        )  # fmt: skip
        yield World(parts, trainer, registry, ledger, home)
    mover.close()


def test_too_few_frames_is_nothing_to_do_and_leaves_the_shards_fresh(world: World) -> None:
    world.stage(1)
    report = world.cycle()
    assert report.outcome == "nothing_to_do"
    assert "32 fresh frames" in report.message
    assert (world.trainer.submitted, world.ledger.shard_states(), world.champion()) == ([], {}, "")
    assert not list(world.home.cycles.glob("*/recall")), "the scorer that was loading is gone"


def test_a_model_that_cannot_be_built_is_refused_before_a_cycle_begins(world: World) -> None:
    world.stage()
    model = world.parts.config.model.model_copy(update={"hyper": {"features": "x"}})
    world.parts = replace(world.parts, config=world.parts.config.model_copy(update={"model": model}))
    with pytest.raises(ConfigError, match="features = 'x'"):
        world.cycle("win")
    assert (world.trainer.submitted, world.ledger.history(1), world.ledger.open_cycle()) == ([], [], None)


def test_a_first_model_that_beats_the_baseline_becomes_champion_and_challenger(world: World) -> None:
    world.stage()
    report = world.cycle("win")
    assert (report.outcome, report.version, report.base_version, report.frames) == ("promoted", "1", "", 64)
    assert report.gate is not None
    assert report.gate.against == "gaussian"
    assert world.champion() == "1"
    challenger = world.registry.get(CHALLENGER)
    assert challenger is not None
    assert challenger.version == "1"
    assert list(report.steps) == [
        "seal",
        "select",
        "recall",
        "move",
        "train",
        "fetch",
        "judge",
        "register",
        "promote",
        "live",
    ]
    assert set(world.ledger.shard_states().values()) == {TRAINED}
    folder = world.home.cycles / report.cycle_id
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "job.json", "bundle", "verdict.json", "report.md", "summary.json"
    }  # fmt: skip


def test_the_next_cycle_starts_from_the_champion_and_mixes_old_frames_in(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    report = world.cycle("win")
    job = world.trainer.jobs[-1]
    assert (report.version, report.base_version) == ("2", "1")
    assert job.base is not None
    assert job.base.version == "1"
    assert job.champion == job.base
    assert [ref.shard_id for ref in job.fresh] == ["test/run000001/00000002", "test/run000001/00000003"]
    assert [ref.shard_id for ref in job.replay] == ["test/run000001/00000001"], "40 frames of replay hold one shard"
    assert world.champion() == "2"


def test_without_fresh_frames_there_is_nothing_to_do_unless_asked_again(world: World) -> None:
    world.stage()
    world.cycle("win")
    assert world.cycle().outcome == "nothing_to_do"
    assert world.cycle("win", again=True).outcome == "promoted"


@pytest.mark.parametrize(("act", "outcome"), [("lose", "refused"), ("tie", "refused")])
def test_a_challenger_that_is_not_better_is_registered_and_refused(world: World, act: Act, outcome: str) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    report = world.cycle(act)
    assert (report.outcome, report.version, world.champion()) == (outcome, "2", "1")
    kept = world.registry.get("2")
    assert kept is not None
    assert kept.tags["filmloop.gate"] == "refuse"


def test_a_failed_training_ships_nothing_and_the_next_cycle_begins_anew_with_the_same_shards(world: World) -> None:
    world.stage()
    with pytest.raises(TrainingError, match=r"loss is nan(.|\n)*step 12 loss nan") as caught:
        world.cycle("fail")
    assert caught.value.ids["cycle_id"]
    assert (world.ledger.history()[0].outcome, world.registry.versions()) == ("failed", [])
    report = world.cycle("win")
    assert (report.outcome, report.frames) == ("promoted", 64)


def test_a_lost_job_is_submitted_again_as_the_same_job(world: World) -> None:
    world.stage()
    assert world.cycle("lose_job", "lose_job", "win").outcome == "promoted"
    assert world.trainer.submitted == ["lose_job", "lose_job", "win"]
    assert len({job.job_id for job in world.trainer.jobs}) == 1


def test_a_job_that_is_lost_for_ever_fails_the_cycle(world: World) -> None:
    world.stage()
    with pytest.raises(TrainingError, match="node went away"):
        world.cycle("lose_job")
    assert world.trainer.submitted == ["lose_job"] * 4 + ["cancelled lose_job"], "nothing of it may go on"


def test_a_transient_error_leaves_the_cycle_open_and_the_next_call_goes_on_with_it(world: World) -> None:
    world.stage()
    with pytest.raises(TransientError, match="away"):
        world.cycle("hang_up")
    open_id = world.ledger.open_cycle()
    assert open_id is not None
    world.stage()  # frames that came in meanwhile are for the cycle after
    report = world.cycle("win")
    assert (report.cycle_id, report.frames, report.outcome) == (open_id.cycle_id, 64, "promoted")
    assert len(world.registry.versions()) == 1


def test_a_login_that_is_missing_leaves_the_cycle_open_and_it_goes_on_after_it(world: World) -> None:
    world.stage()
    with pytest.raises(AuthError) as caught:
        world.cycle("lock_out")
    assert world.cycle("win").cycle_id == caught.value.ids["cycle_id"]
    assert world.champion() == "1"


def test_a_login_that_is_missing_for_a_whole_weekend_keeps_the_cycle(world: World) -> None:
    world.stage()
    with pytest.raises(TransientError):
        world.cycle("hang_up")
    for _ in range(12):
        with pytest.raises(AuthError):
            world.cycle("lock_out")
    for _ in range(8):
        with pytest.raises(TransientError):
            world.cycle("hang_up")
    assert world.ledger.open_cycle() is not None, "nine attempts count"
    world.cycle("win")
    assert [row.outcome for row in world.ledger.history()] == ["promoted"]


def test_a_cut_off_cycle_is_abandoned_when_the_site_has_changed(world: World) -> None:
    world.stage()
    with pytest.raises(TransientError):
        world.cycle("hang_up")
    hyper = world.parts.config.training.hyper.model_copy(update={"max_steps": 7})
    training = world.parts.config.training.model_copy(update={"hyper": hyper})
    world.parts = replace(world.parts, config=world.parts.config.model_copy(update={"training": training}))
    report = world.cycle("win")
    outcomes = [row.outcome for row in world.ledger.history()]
    assert outcomes == ["promoted", "failed"]
    assert "Abandoned" in world.ledger.history()[1].summary["message"]
    assert world.trainer.jobs[-1].hyper.max_steps == 7
    assert report.frames == 64, "the abandoned cycle's shards are fresh again"


def test_a_champion_that_was_moved_meanwhile_is_not_overrun(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    world.cycle("lose")
    world.stage()

    submit = world.trainer.submit

    def while_training(job: TrainJob) -> str:
        promote(world.registry, world.ledger, version="2", expected="1", who="a person", why="knows better")
        return submit(job)

    world.trainer.submit = while_training  # type: ignore[method-assign]
    report = world.cycle("win")
    assert (report.outcome, world.champion()) == ("undecided", "2")
    assert "filmloop models promote 3" in report.message


def test_a_rollback_while_the_cycle_was_cut_off_is_not_undone_when_it_goes_on(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    end_step = world.ledger.end_step

    def cut_off(cycle_id: str, name: str, *rest: Any) -> None:
        if name == "promote":
            raise TransientError("The journal's disk is full.")
        end_step(cycle_id, name, *rest)

    world.ledger.end_step = cut_off  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="disk is full"):
        world.cycle("win")
    assert world.champion() == "2", "the alias was moved before the journal knew"
    rollback(world.registry, world.ledger, who="operator", why="looks odd")
    world.ledger.end_step = end_step  # type: ignore[method-assign]
    report = world.cycle()
    assert (report.outcome, world.champion()) == ("undecided", "1")


def test_an_alias_that_was_moved_before_the_cut_counts_as_promoted(world: World) -> None:
    world.stage()
    end_step = world.ledger.end_step

    def cut_off(cycle_id: str, name: str, *rest: Any) -> None:
        if name == "promote":
            raise TransientError("The journal's disk is full.")
        end_step(cycle_id, name, *rest)

    world.ledger.end_step = cut_off  # type: ignore[method-assign]
    with pytest.raises(TransientError):
        world.cycle("win")
    world.ledger.end_step = end_step  # type: ignore[method-assign]
    assert world.cycle().outcome == "promoted"
    assert len(world.ledger.moves(world.registry.model, CHAMPION)) == 1


def test_a_bundle_that_was_not_compared_with_the_champion_is_refused(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    submit = world.trainer.submit
    world.trainer.submit = lambda job: submit(job.model_copy(update={"champion": None}))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="champion 1"):
        world.cycle("win")
    assert world.champion() == "1"


def test_an_unforeseen_exception_closes_the_cycle_so_that_the_next_one_is_not_stuck(world: World) -> None:
    world.stage()
    submit = world.trainer.submit
    world.trainer.submit = lambda job: 1 // 0  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(ZeroDivisionError):
        world.cycle("win")
    assert world.ledger.history()[0].outcome == "failed"
    world.trainer.submit = submit  # type: ignore[method-assign]
    assert world.cycle("win").outcome == "promoted"


def test_a_step_that_fails_for_a_passing_reason_again_and_again_ends_the_cycle(world: World) -> None:
    world.stage()
    for attempt in range(10):
        assert (world.ledger.open_cycle() is None) == (attempt == 0)
        with pytest.raises(TransientError):
            world.cycle("hang_up")
    assert world.ledger.open_cycle() is None
    assert world.cycle("win").outcome == "promoted"


def test_overhead_leaves_out_the_training_and_never_falls_below_the_other_steps(world: World) -> None:
    world.stage()
    report = world.cycle("win")
    # The scripted trainer claims 12.5 s of training and took none of them: a step whose seconds were lost to a kill.
    others = sum(seconds for name, seconds in report.steps.items() if name != "train")
    assert report.train_s == 12.5
    assert report.overhead_s == pytest.approx(others, abs=1e-6)


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


def test_a_bundle_of_another_job_is_refused(world: World) -> None:
    world.stage()
    submit = world.trainer.submit
    world.trainer.submit = lambda job: submit(job.model_copy(update={"job_id": "somebody-else"}))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="somebody-else"):
        world.cycle("win")
    assert world.registry.versions() == []


def test_the_cluster_keeps_what_the_next_cycle_mixes_in_and_nothing_else(world: World) -> None:
    world.stage(count=3)
    report = world.cycle("win")
    assert not (world.home.cluster / "runs" / report.cycle_id).exists()
    left = sorted(path.name for path in (world.home.cluster / "data/test/run000001").iterdir())
    assert left == ["00000002.manifest.json", "00000002.zarr"], "replay_frames = 40 is one shard of 32"


def test_every_alias_move_of_a_cycle_is_in_the_audit_trail(world: World) -> None:
    world.stage()
    report = world.cycle("win")
    (move,) = world.ledger.moves(world.registry.model, CHAMPION)
    assert (move.from_version, move.to_version, move.cycle_id) == ("", "1", report.cycle_id)
    assert "gaussian" in move.why.lower()


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


def test_a_champion_that_was_taken_away_meanwhile_ends_the_cycle_at_once(world: World) -> None:
    world.stage()
    world.cycle("win")
    world.stage()
    submit = world.trainer.submit

    def while_training(job: TrainJob) -> str:
        del world.registry.aliases[CHAMPION]
        return submit(job)

    world.trainer.submit = while_training  # type: ignore[method-assign]
    report = world.cycle("win")
    assert (report.outcome, world.champion()) == ("undecided", "")
    assert "taken away" in report.message
    assert "filmloop models promote 2" in report.message


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
