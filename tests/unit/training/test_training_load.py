from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from filmloop.bundle import WEIGHTS, load_golden
from filmloop.core.documents import ModelChoice, TrainResult, WeightsRef
from filmloop.core.errors import ConfigError, FilmloopError, TrainingError, VerificationError
from filmloop.testing.models import make_model_bundle
from filmloop.training.load import build_module, load_module, verified_base, verified_bundle

SMALL = {"features": 8, "angle_features": 8, "depth": 1}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_model_bundle(tmp_path / "bundle", hyper=SMALL)


def _reference(bundle: Path) -> WeightsRef:
    sha256 = TrainResult.read(bundle / "result.json").weights_sha256
    return WeightsRef(version="3", bundle_path=str(bundle), weights_sha256=sha256)


def test_a_loaded_network_gives_the_golden_rates(bundle: Path) -> None:
    module = load_module(bundle)
    counts, rate = load_golden(bundle)
    with torch.inference_mode():
        ours = module(torch.from_numpy(counts.astype(np.float32))).numpy()
    assert not module.training
    np.testing.assert_allclose(ours, rate, rtol=1e-5)


def _renamed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {("other" if name == "read.bias" else name): value for name, value in arrays.items()}


def _with(**changed: np.ndarray) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: arrays | {name.replace("__", "."): value for name, value in changed.items()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_with(read__bias=np.zeros(9, np.float32)), "read.bias is"),
        (_with(read__bias=np.zeros(8, np.float64)), "float64"),
        (_with(read__bias=np.full(8, np.nan, np.float32)), "not finite"),
        (_renamed, "no read.bias, unknown other"),
    ],
)
def test_weights_that_do_not_fit_are_refused(bundle: Path, spoil: Callable, says: str) -> None:
    save_file(spoil(load_file(bundle / WEIGHTS)), bundle / WEIGHTS)
    with pytest.raises(VerificationError, match=says):
        load_module(bundle)


def test_pickled_weights_are_refused(bundle: Path) -> None:
    (bundle / WEIGHTS).write_bytes(pickle.dumps({"w": [1.0]}))
    with pytest.raises(VerificationError, match="not a safetensors file"):
        load_module(bundle)


def test_a_model_that_is_not_installed_is_a_verification_error(bundle: Path) -> None:
    result = TrainResult.read(bundle / "result.json")
    model = ModelChoice(name="nowhere.at_all:SPEC", frame_shape=(16, 128))
    result.model_copy(update={"model": model}).write(bundle / "result.json")
    with pytest.raises(VerificationError, match="not installed here"):
        load_module(bundle)


@pytest.mark.parametrize(
    "choice",
    [
        ModelChoice(name="mixr", frame_shape=(16, 128)),
        ModelChoice(name="cookienet", frame_shape=(16, 127)),
        ModelChoice(name="mixer", frame_shape=(16, 128), hyper={"widht": 3}),
        ModelChoice(name="mixer", frame_shape=(16, 128), hyper={"features": "x"}),
        ModelChoice(name="mixer", frame_shape=(16, 128), hyper={"features": -1}),
        ModelChoice(name="mixer", frame_shape=(16, 128), hyper={"depth": 2.5}),
    ],
)
def test_a_model_that_cannot_be_built_is_a_config_error(choice: ModelChoice) -> None:
    with pytest.raises(ConfigError, match="Cannot build model") as caught:
        build_module(choice)
    assert "site check" in caught.value.hint


def test_a_replaced_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = make_model_bundle(tmp_path / "other", hyper=SMALL, seed=1)
    reference = _reference(bundle).model_copy(update={"bundle_path": str(other)})
    with pytest.raises(VerificationError, match="other weights"):
        verified_bundle(reference)


@pytest.mark.parametrize(
    "changes", [{"name": "cookienet"}, {"frame_shape": (128, 128)}, {"hyper": SMALL | {"features": 16}}]
)
def test_a_base_of_another_form_is_refused(bundle: Path, changes: dict) -> None:
    model = TrainResult.read(bundle / "result.json").model
    assert verified_base(_reference(bundle), model) == bundle
    with pytest.raises(TrainingError, match="Version 3 is mixer"):
        verified_base(_reference(bundle), ModelChoice.model_validate(model.as_json() | changes))


def test_a_damaged_base_is_refused(bundle: Path) -> None:
    reference = _reference(bundle)
    (bundle / "metrics.jsonl").write_text("")
    with pytest.raises(FilmloopError, match="size or SHA-256"):
        verified_base(reference, TrainResult.read(bundle / "result.json").model)
