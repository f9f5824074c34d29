from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from filmloop.core.documents import ModelChoice
from filmloop.training.export import INPUT, OUTPUT, export_onnx
from filmloop.training.load import build_module

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", ["mixer", "cookienet"])
def test_another_runtime_gives_the_same_rates_for_any_batch(tmp_path: Path, name: str) -> None:
    module = build_module(ModelChoice(name=name, frame_shape=(16, 128))).eval()
    export_onnx(module, (16, 128), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # no second file with the weights
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for frames in (1, 2, 7):
        counts = np.random.default_rng(frames).poisson(0.3, (frames, 16, 128)).astype(np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(counts)).numpy()
        (rate,) = session.run([OUTPUT], {INPUT: counts})
        assert rate.dtype == np.float32
        np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-6)
