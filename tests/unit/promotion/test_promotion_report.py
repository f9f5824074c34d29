"""The description answers first, fits MLflow's column and names the command to go back."""

import pytest

from filmloop.bundle import load_evaluation
from filmloop.core.documents import Verdict
from filmloop.promotion.report import describe
from filmloop.testing.bundles import make_bundle

WHEN = "2026-11-22T13:05:01.250Z"


@pytest.fixture
def made(tmp_path):
    result = make_bundle(tmp_path / "bundle", base_version="4")
    return result, load_evaluation(tmp_path / "bundle").reports


def verdict(decision):
    return Verdict(
        decision=decision, reasons=("1.8 % fewer nats.",), against="champion", gain=0.018, gain_low=0.012,
        gain_high=0.024, frames=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "first"),
    [
        ("promote", "**Passed the gate.** 1.8 %"),
        ("refuse", "**Refused.** 1.8 %"),
        ("undecided", "**Undecided.** 1.8 %"),
    ],
)
def test_the_verdict_comes_first(made, decision, first):
    assert describe(*made, verdict(decision), cycle_id="c7", created_utc=WHEN).startswith(first)


def test_it_tells_origin_scores_training_lineage_and_the_way_back(made):
    result, reports = made
    text = describe(result, reports, None, cycle_id="c7", created_utc=WHEN, site="lcls")
    assert text.startswith("**Not judged yet.** mixer 4×8 of site lcls, continued from version 4, cycle `c7`, " + WHEN)
    score = reports["challenger"]
    assert f"| **this version** | {score.nll:.4g} | {score.nll_low:.4g} to {score.nll_high:.4g} |" in text
    assert f"| gaussian | {reports['gaussian'].nll:.4g} |" in text
    assert "5,400 frames, 200 steps (8.5 epochs) in 12.5 s on 2 × cpu" in text
    assert f"`s-1` {result.lineage['s-1'][:12]}" in text
    assert f"weights {result.weights_sha256[:12]}" in text
    assert "`filmloop models rollback`" in text


def test_a_first_version_was_trained_from_scratch(made):
    result, reports = made
    text = describe(result.model_copy(update={"base_version": ""}), reports, None, cycle_id="c1", created_utc=WHEN)
    assert "trained from scratch" in text


def test_what_went_wrong_in_training_is_told(made):
    result, reports = made
    rough = result.model_copy(update={"resumed_from_step": 120, "steps_skipped": 3, "status": "time_limit"})
    text = describe(rough, reports, None, cycle_id="c1", created_utc=WHEN)
    assert "continued from step 120" in text
    assert "3 steps had a gradient that was not finite" in text
    assert "stopped at the time limit" in text


def test_hundreds_of_shards_still_fit_mlflows_column(made):
    result, reports = made
    many = result.model_copy(update={"lineage": {f"lcls.run0001.{n:06d}": f"{n:064x}" for n in range(400)}})
    text = describe(many, reports, verdict("promote"), cycle_id="c7", created_utc=WHEN)
    assert len(text) < 5000
    assert "400 shards" in text
    assert "394 older ones, listed in `result.json`" in text
    assert "lcls.run0001.000399" in text
