from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filmloop.core.documents import HoldoutPolicy
from filmloop.core.errors import DataError
from filmloop.core.holdout import held_out
from filmloop.testing.models import make_model_bundle
from filmloop.training.score import score_frames
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

KEYS = {
    "frames",
    "nll",
    "nll_low",
    "nll_high",
    "nll_gaussian",
    "nll_zero",
    "mse",
    "mse_gaussian",
    "mse_pursuit",
    "mse_zero",
    *(
        score + method
        for score in ("pulse_count", "pulses_found", "phase_error_deg")
        for method in ("", "_gaussian", "_pursuit")
    ),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_bundle(tmp_path_factory.mktemp("score") / "bundle", hyper={"features": 8})


@pytest.fixture(scope="module")
def frames():
    return CookieBoxSimulator(Conditions(), seed=4).frames(0, 160, truth=True)


def test_only_held_out_frames_are_scored(bundle: Path, frames) -> None:
    policy = HoldoutPolicy(permille=250)
    scores = score_frames(bundle, frames.counts_NCE, frames.signal_NCE / 7, frames.pulse_id_N, policy)
    assert set(scores) == KEYS
    assert scores["frames"] == int(held_out(frames.pulse_id_N, policy.permille).sum())
    assert scores["mse_pursuit"] < scores["mse_gaussian"] < scores["mse_zero"]
    assert scores["mse"] < scores["mse_zero"] * 1.01  # untrained: after its fitted gain no worse than nothing
    assert scores["nll_gaussian"] < scores["nll_zero"] < scores["nll"]
    # The pursuit reads its own lines; an untrained network shows none that are there.
    assert scores["pulse_count_pursuit"] > 0.7 > scores["pulse_count"]
    assert scores["pulses_found_pursuit"] > 0.9
    assert scores["phase_error_deg_pursuit"] < 2.0


def test_without_labels_there_is_no_mse(bundle: Path, frames) -> None:
    scores = score_frames(
        bundle, frames.counts_NCE, None, frames.pulse_id_N, HoldoutPolicy(permille=250, max_frames=12)
    )
    assert set(scores) == KEYS
    assert scores["frames"] == 12
    assert {scores[key] for key in KEYS if key.startswith(("mse", "pulse", "phase"))} == {None}


def test_frames_of_another_shape_are_refused(bundle: Path) -> None:
    with pytest.raises(DataError, match=r"\(16, 128\).*\(8, 128\)"):
        score_frames(bundle, np.ones((99, 8, 128), np.uint8), None, np.arange(99, dtype=np.uint64), HoldoutPolicy())


def test_too_few_frames_are_refused(bundle: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        score_frames(bundle, np.ones((20, 16, 128), np.uint8), None, np.arange(20, dtype=np.uint64), HoldoutPolicy())
