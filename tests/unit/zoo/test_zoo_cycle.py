"""What a cycle makes of what the zoo says."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.bundle import verify_bundle
from filmloop.core.documents import TrainJob, Verdict
from filmloop.core.errors import TransientError
from filmloop.cycle import run_cycle
from filmloop.ledger import TRAINED
from filmloop.ports.registry import CHAMPION
from filmloop.promotion.publish import promote
from filmloop.zoo.index import RECALLED_TAG
from rigs.zoo import Site


def test_a_cycle_promotes_a_version_that_fits_again_without_training(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    report = run_cycle(site.parts, tell=lambda step, text: None)
    assert (report.outcome, report.version, report.recalled) == ("promoted", "1", True), report.message
    assert report.message.startswith("Version 1 fits again: no training.")
    assert list(report.steps) == ["seal", "select", "recall", "promote", "live"]
    assert (report.train_s, report.base_version) == (0.0, "")
    assert report.gate is not None
    champion = site.registry.get(CHAMPION)
    assert champion is not None
    assert champion.version == "1"
    assert report.cycle_id in champion.tags[RECALLED_TAG]
    move = site.parts.ledger.moves(site.registry.model, CHAMPION)[0]
    assert (move.from_version, move.to_version, move.cycle_id) == ("2", "1", report.cycle_id)
    assert "fits again" in move.why
    folder = site.home.cycles / report.cycle_id
    assert Verdict.read(folder / "verdict.json") == report.gate
    assert not (folder / "recall").exists()
    assert set(site.parts.ledger.shard_states().values()) == {TRAINED}
    assert run_cycle(site.parts, tell=lambda step, text: None).outcome == "nothing_to_do"


def test_a_person_who_moves_the_champion_meanwhile_is_not_overrun(site: Site) -> None:
    site.add(0.3)
    site.add(0.6)
    site.make_champion(site.add(0.5))

    def meanwhile(step: str, text: str) -> None:
        if step == "promote":
            promote(site.registry, site.parts.ledger, version="2", expected="3", who="a person", why="knows better")

    report = run_cycle(site.parts, tell=meanwhile)
    champion = site.registry.get(CHAMPION)
    assert champion is not None
    assert (report.outcome, report.recalled, champion.version) == ("undecided", False, "2")


def test_a_cycle_trains_from_the_best_former_version_and_compares_with_the_champion(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    job = submitted(site)
    assert job.base is not None
    assert job.champion is not None
    assert (job.base.version, job.champion.version) == ("1", "2")
    for reference in (job.base, job.champion):
        assert verify_bundle(Path(reference.bundle_path)).weights_sha256 == reference.weights_sha256


def test_a_cycle_that_trains_from_scratch_ships_the_champion_to_compare_with_and_no_ancestor(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    job = submitted(site)
    assert job.base is None
    assert job.champion is not None
    champion = Path(job.champion.bundle_path)
    assert [path.name for path in champion.parent.iterdir()] == [champion.name] == ["2"]


def submitted(site: Site) -> TrainJob:
    """What a cycle would train."""
    jobs: list[TrainJob] = []

    def submit(job: TrainJob) -> str:
        jobs.append(job)
        raise TransientError("enough seen")

    site.parts.launcher.submit = submit  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="enough seen"):
        run_cycle(site.parts, tell=lambda step, text: None)
    (job,) = jobs
    return job
