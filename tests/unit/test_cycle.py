"""The cycle with everything real but the trainer and the registry server: ledger, shards, mover, gate, files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from filmloop.core.documents import TrainJob
from filmloop.core.errors import AuthError, ConfigError, DataError, TrainingError, TransientError
from filmloop.ledger import TRAINED
from filmloop.ports.registry import CHALLENGER, CHAMPION
from filmloop.promotion.publish import promote, rollback
from rigs.cycle import Act, World


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


def test_a_bundle_of_another_job_is_refused(world: World) -> None:
    world.stage()
    submit = world.trainer.submit
    world.trainer.submit = lambda job: submit(job.model_copy(update={"job_id": "somebody-else"}))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="somebody-else"):
        world.cycle("win")
    assert world.registry.versions() == []


def test_every_alias_move_of_a_cycle_is_in_the_audit_trail(world: World) -> None:
    world.stage()
    report = world.cycle("win")
    (move,) = world.ledger.moves(world.registry.model, CHAMPION)
    assert (move.from_version, move.to_version, move.cycle_id) == ("", "1", report.cycle_id)
    assert "gaussian" in move.why.lower()


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
