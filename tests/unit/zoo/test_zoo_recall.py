"""Recall on real bundles and real frames: the right ancestor is found, and comes back only where it is as good as it was."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from filmloop.bundle import JOB, WEIGHTS
from filmloop.core.documents import EvaluationReport, TrainJob
from filmloop.promotion.publish import rollback
from filmloop.testing.bundles import seal_bundle
from filmloop.zoo.embedding import embed
from filmloop.zoo.index import DATA_TAG, data_tag
from filmloop.zoo.recall import Animal, decide
from rigs.zoo import HYPER, SHAPE, Site, constant_bundle


def test_the_version_that_fits_the_frames_again_is_found_and_fits(site: Site) -> None:
    right, _worse, champion = site.add(0.3), site.add(0.8), site.add(0.5)
    site.make_champion(champion)
    found = site.look()
    assert (found.base, found.fits, [each.version for each in found.candidates]) == (right, right, ["1", "3", "2"])
    assert found.verdict is not None
    assert found.verdict.decision == "promote"
    assert found.message.startswith("Version 1 fits again: no training. It was trained on frames with ")
    assert found.frames == len(site.frames())
    assert not (site.folder / "look").exists()


def test_it_is_an_ancestor_at_most_where_the_policy_says_so_and_nothing_is_asked_when_it_is_off(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    found = site.look(recall="warm_start")
    assert (found.base, found.fits) == ("1", "")
    assert "Training starts from version 1" in found.message
    off = site.look(recall="off")
    assert (off.base, off.fits, off.candidates, off.data) == ("2", "", (), None)


def test_a_version_whose_own_frames_looked_different_is_an_ancestor_and_never_promoted(site: Site) -> None:
    site.add(0.3)
    site.registry.annotate("1", tags={DATA_TAG: embed(np.full((900, *SHAPE), 3, np.uint8)).model_dump_json()})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "hits a frame, energy 7.5, line" in found.message
    assert "These differ, most in " in found.message


def test_a_version_that_was_further_ahead_on_its_own_frames_is_an_ancestor_and_never_promoted(site: Site) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "ahead of a constant rate, and was" in found.message


def test_a_version_whose_frames_are_hardly_known_gets_an_embedding_and_is_an_ancestor_at_most(site: Site) -> None:
    site.add(0.3, data=False)
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "known from 8 only" in found.message, "its eight golden frames: the job names no shards"
    info = site.registry.get("1")
    assert info is not None
    assert data_tag(info) is not None


def test_a_champion_that_is_as_good_stays_the_ancestor(site: Site) -> None:
    for rate in (0.3, 0.8, 0.3001):
        site.add(rate)
    site.make_champion("3")
    found = site.look()
    assert (found.base, found.fits) == ("3", "")
    assert found.message == "No former version is surely better than the champion."


def test_without_a_champion_the_best_version_is_the_ancestor_and_none_is_promoted(site: Site) -> None:
    site.add(0.8)
    assert site.look().base == "", "it is worse than a constant rate"
    # A constant is never better than the mean, so let the frames' mean be wrong: one bright frame that is not held out.
    seen = site.frames().seen
    better = seen.model_copy(update={"zero": shifted(seen.zero, 1.0)})
    animals = [animal(site, "1", 0.3), animal(site, "2", 0.5)]
    reports = {"1": shifted(seen.zero, 0.0), "2": shifted(seen.zero, 0.5)}
    found = decide(animals, reports, better, "", **policies(site))
    assert (found.base, found.fits) == ("1", "")


def policies(site: Site) -> dict[str, Any]:
    config = site.parts.config
    return {"zoo": config.zoo, "gate": config.gate, "training": config.training}


def shifted(report: EvaluationReport, nats: float, spread: float = 0.01) -> EvaluationReport:
    nll_N = np.asarray(report.nll_frames) + np.random.default_rng(5).normal(nats, spread, report.frames)
    return report.model_copy(update={"nll": float(nll_N.mean()), "nll_frames": tuple(nll_N.tolist())})


def animal(site: Site, version: str, rate: float) -> Animal:
    seen = site.frames().seen
    return Animal(version=version, folder=site.folder, data=seen.data, own=seen.zero, own_zero=seen.zero)


def test_among_many_candidates_one_that_is_better_by_chance_is_not_promoted(site: Site) -> None:
    """One candidate alone would pass with 95 %; among forty the interval is wider."""
    seen, gate = site.frames().seen, site.parts.config.gate.model_copy(update={"min_gain": 0.0})
    champion = shifted(seen.zero, 0.0)
    lucky = shifted(champion, -0.06, spread=0.5)
    many = [animal(site, str(number), 0.3) for number in range(42)]
    reports = {each.version: shifted(champion, 0.5) for each in many} | {"41": champion, "7": lucky}
    alone = [each for each in many if each.version in ("7", "41")]
    assert decide(alone, reports, seen, "41", **policies(site) | {"gate": gate}).fits == "7"
    found = decide(many, reports, seen, "41", **policies(site) | {"gate": gate})
    assert (found.fits, found.base) == ("", "41")


def test_a_version_of_another_form_is_no_candidate(site: Site) -> None:
    site.add(0.3, hyper={**HYPER, "depth": 2})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.candidates, found.left_out) == ("2", (), {})


def test_what_is_damaged_or_gone_is_left_out_and_named(site: Site) -> None:
    for rate in (0.3, 0.3, 0.31, 0.5):
        site.add(rate)
    site.make_champion("4")
    damage = site.folder / "registry" / "1" / WEIGHTS
    damage.write_bytes(damage.read_bytes()[:-1])
    shutil.rmtree(site.folder / "registry" / "2")
    found = site.look()
    assert set(found.left_out) == {"1", "2"}
    assert (found.fits, found.base) == ("3", "3")


def test_what_a_person_rolled_back_is_neither_promoted_nor_an_ancestor(site: Site) -> None:
    site.make_champion(site.add(0.5))
    site.make_champion(site.add(0.3))
    rollback(site.registry, site.parts.ledger, who="a person", why="odd pictures")
    found = site.look()
    assert (found.base, found.fits, found.candidates) == ("1", "", ())


def test_a_damaged_champion_leaves_everything_as_it_was(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    shutil.rmtree(site.folder / "registry" / "2")
    found = site.look()
    assert (found.base, found.fits) == ("2", "")
    assert "2" in found.left_out


def test_a_registry_that_is_away_leaves_everything_as_it_was(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    site.registry.away = True
    found = site.look_back(site.parts, lambda: "2")
    assert (found.base, found.fits) == ("2", "")
    assert "could not be used" in found.message
    assert found.data is not None, "the next version is told what it was trained on all the same"


def test_frames_that_cannot_be_read_leave_everything_as_it_was(site: Site) -> None:
    """The deep check of all bytes is the trainer's; here the codec's checksum finds it."""
    site.add(0.3)
    site.make_champion(site.add(0.5))
    (counts,) = site.home.stage.rglob("counts/c/0/0/0")
    counts.write_bytes(bytes([255]) * counts.stat().st_size)
    found = site.look()
    assert (found.base, found.fits, found.data) == ("2", "", None)
    assert "The newest frames cannot be read: Shard test/run000001/00000000 is damaged" in found.message


def test_frames_staged_because_they_surprised_the_champion_do_not_decide_against_it(site: Site) -> None:
    """Half of what is staged is what the champion explains worst, and that is one frame in a hundred of the beam."""
    shutil.rmtree(site.home.stage)
    site.stage(1200, surprising=0.8)
    other = site.add(0.5)
    site.make_champion(site.add(0.3))
    found = site.look()
    assert (found.base, found.fits, [each.version for each in found.candidates]) == ("2", "", ["2", other])
    assert found.candidates[1].gain_high < 0


def test_where_training_corrects_gains_nothing_returns_without_training(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    site.train_with(hyper=site.parts.config.training.hyper.model_copy(update={"normalise_gain": True}))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert found.message.startswith("Training starts from version 1")
    assert "None returns without training: training.hyper.normalise_gain" in found.message
    assert "normalise_gain" not in site.look(recall="warm_start").message, "nothing would return anyway"


def test_a_version_whose_own_scores_are_gain_corrected_is_an_ancestor_at_most(site: Site) -> None:
    bundle = constant_bundle(site.folder / "made", 0.3, site.frames(), seed=1)
    job = TrainJob.read(bundle / JOB)
    hyper = job.hyper.model_copy(update={"normalise_gain": True})
    job.model_copy(update={"hyper": hyper}).write(bundle / JOB)
    seal_bundle(bundle, job.model, job_id=job.job_id, seed=1)
    tags = {DATA_TAG: site.frames().seen.data.model_dump_json()}
    site.registry.register(bundle, key="made", description="", tags=tags, metrics={})
    site.make_champion(site.add(0.5))
    found = site.look()
    assert (found.base, found.fits) == ("1", "")
    assert "corrected gains" in found.message


@pytest.mark.parametrize("recall", ["promote", "warm_start", "off"])
def test_a_site_that_trains_from_scratch_is_told_of_no_ancestor(site: Site, recall: str) -> None:
    site.add(0.3, ahead=2.0)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    found = site.look(recall=recall)
    assert (found.base, found.fits) == ("", "")
    assert found.message.endswith("Training starts from scratch: training.warm_start is false.")
    assert "Training starts from version" not in found.message
    assert ("The best former version is 1" in found.message) == (recall != "off")
    assert '"base": ""' in found.tag()


def test_a_version_returns_to_a_site_that_trains_from_scratch_too(site: Site) -> None:
    site.add(0.3)
    site.make_champion(site.add(0.5))
    site.train_with(warm_start=False)
    found = site.look()
    assert found.fits == "1"
    assert "scratch" not in found.message
