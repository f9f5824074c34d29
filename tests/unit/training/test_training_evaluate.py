from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from filmloop.core.documents import HoldoutPolicy, ShardRef, TrainResult, WeightsRef
from filmloop.core.errors import TrainingError, VerificationError
from filmloop.core.poisson import thin_by_hash
from filmloop.testing.models import make_model_bundle
from filmloop.testing.training import small_job
from filmloop.training.data import load_data
from filmloop.training.evaluate import (
    constant_rate,
    evaluate,
    evaluate_baselines,
    evaluate_challenger,
    evaluate_champion,
)
from filmloop.training.holdout import Holdout
from filmloop.training.load import build_module
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

POLICY = HoldoutPolicy()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames() -> tuple[Holdout, np.ndarray]:
    """300 held-out frames and the rates that they were drawn from."""
    simulated = CookieBoxSimulator(Conditions(), seed=11).frames(0, 300, truth=True)
    kept = thin_by_hash(simulated.counts_NCE, simulated.pulse_id_N, keep=POLICY.keep, seed=POLICY.seed)
    held = Holdout(
        run_N=np.zeros(300, np.int64),
        pulse_id_N=simulated.pulse_id_N,
        counts_NCE=simulated.counts_NCE,
        kept_NCE=kept,
        label_NCE=None,
        policy=POLICY,
    )
    assert simulated.rate_NCE is not None
    return held, simulated.rate_NCE


class _Truth:
    """Gives the true rates, batch by batch, whatever it is shown."""

    def __init__(self, rate_NCE: np.ndarray, gain: float = 1.0) -> None:
        self._rate_NCE, self._gain, self._next = rate_NCE, np.float32(gain), 0

    def __call__(self, counts_NCE: np.ndarray) -> np.ndarray:
        self._next += len(counts_NCE)
        return self._rate_NCE[self._next - len(counts_NCE) : self._next] * self._gain


def test_the_truth_scores_better_than_any_other_rate(frames: tuple[Holdout, np.ndarray]) -> None:
    held, rate = frames
    truth = evaluate(_Truth(rate), held, "truth")
    assert truth.frames == len(truth.nll_frames) == 300
    assert truth.nll_low < truth.nll < truth.nll_high
    assert evaluate(constant_rate(held.counts_NCE), held, "zero").nll > truth.nll + 100
    # A gain error of 10 % costs 0.005 of the scored counts (about 125 of 500), in nats a frame.
    for gain in (0.9, 1.1):
        assert evaluate(_Truth(rate, gain), held, "off").nll > truth.nll + 0.3


def test_rates_that_are_not_finite_are_an_error(frames: tuple[Holdout, np.ndarray]) -> None:
    held, rate = frames
    with pytest.raises(TrainingError, match="300 held-out frames"):
        evaluate(_Truth(rate, float("nan")), held, "challenger")


def test_all_predictors_are_scored_on_the_same_frames(folder: Path, tmp_path: Path, shard: ShardRef) -> None:
    champion = _champion(make_model_bundle(tmp_path / "champion", hyper={"features": 8}))
    job = small_job(folder, shard, champion=champion)
    data = load_data(job)
    challenger = evaluate_challenger(build_module(job.model), data.holdout)
    reports = {**challenger, **evaluate_champion(job, data, CPU), **evaluate_baselines(data)}
    assert list(reports) == ["challenger", "champion", "gaussian", "zero"]
    assert {report.frames_digest for report in reports.values()} == {data.holdout.digest()}
    assert {report.frames for report in reports.values()} == {len(data.holdout)}
    assert reports["champion"].version == "4"
    assert reports["gaussian"].nll < reports["zero"].nll < reports["challenger"].nll  # untrained


def test_a_champion_for_other_frames_is_refused(folder: Path, tmp_path: Path, shard: ShardRef) -> None:
    champion = _champion(make_model_bundle(tmp_path / "champion", frame_shape=(8, 128), hyper={"features": 8}))
    job = small_job(folder, shard, champion=champion)
    with pytest.raises(VerificationError, match=r"\(8, 128\)"):
        evaluate_champion(job, load_data(job), CPU)


def _champion(bundle: Path) -> WeightsRef:
    sha256 = TrainResult.read(bundle / "result.json").weights_sha256
    return WeightsRef(version="4", bundle_path=str(bundle), weights_sha256=sha256)
