"""Rewrites leave what a graph computes as it is, and are really made."""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from torch import nn

from filmloop.edge.runtimes.graph import (
    channel_mixing_as_convolution,
    logarithm,
    rewrite,
    rows_as_matrix,
    softplus_as_polynomial,
)
from filmloop.edge.runtimes.openvino_graphs import core
from filmloop.training.export import export_onnx
from filmloop_models.catalog import get

SHAPE, FRAMES = (16, 32), 6


class Odd(nn.Module):
    """Mixes channels, but what it mixes is needed between the transposes too; and it has a softplus far from its output."""

    def __init__(self):
        super().__init__()
        self.mix, self.write = nn.Linear(16, 16), nn.Linear(32, 32)

    def forward(self, counts):
        mixed = self.mix(counts.transpose(1, 2))
        inner = nn.functional.softplus(mixed.transpose(1, 2) * 20 - 300) + mixed.mean(dim=1, keepdim=True)[:, :, :1]
        return nn.functional.softplus(self.write(inner))


def network(name):
    torch.manual_seed(3)
    return Odd() if name == "odd" else get(name).module(SHAPE)


def read(module, path):
    export_onnx(module, SHAPE, path)
    model = core().read_model(path)
    model.reshape([FRAMES, *SHAPE])
    return model


def run(model, counts):
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(counts)[0]


def kinds(model):
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("name", ["mixer", "cookienet", "odd"])
def test_a_rewritten_graph_gives_the_same_rates_to_the_polynomials_error(name, tmp_path):
    module = network(name).eval()
    model = read(module, tmp_path / "model.onnx")
    counts = np.random.default_rng(1).poisson(2.0, (FRAMES, *SHAPE)).astype(np.float32)
    counts[0], counts[1] = 0, 255
    rewrite(model)
    assert "SoftPlus" not in kinds(model)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(counts)).numpy()
    # 1.3e-4 is the polynomial's error; the rest is float32, 1e-4 more on a processor without AMX.
    np.testing.assert_allclose(run(model, counts), wanted, rtol=4e-4, atol=1e-9)


def test_the_mixers_transposes_become_convolutions_and_its_rows_a_matrix(tmp_path):
    model = read(network("mixer"), tmp_path / "model.onnx")
    assert softplus_as_polynomial(model) == 1
    assert channel_mixing_as_convolution(model) == 2
    assert "Transpose" not in kinds(model)
    assert kinds(model).count("Convolution") == 4
    assert rows_as_matrix(model) > 0
    matmuls = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert [len(node.output(0).get_shape()) for node in matmuls] == [2] * 6


def test_a_transpose_whose_inside_is_needed_elsewhere_stays(tmp_path):
    model = read(network("odd"), tmp_path / "model.onnx")
    assert channel_mixing_as_convolution(model) == 0
    assert "Transpose" in kinds(model)


def test_softplus_is_followed_over_its_whole_range(tmp_path):
    model = read(nn.Softplus(), tmp_path / "model.onnx")
    softplus_as_polynomial(model)
    values = np.linspace(-80, 80, FRAMES * 16 * 32, dtype=np.float32).reshape(FRAMES, *SHAPE)
    np.testing.assert_allclose(run(model, values), np.logaddexp(0, values.astype(np.float64)), rtol=2e-4)


def test_the_logarithm_of_square_roots_holds_over_all_ratios_of_counts_and_rates():
    ratio = np.geomspace(1e-3, 3e8, 4096, dtype=np.float32)
    x = op.parameter([4096], ov.Type.f32)
    model = ov.Model([op.result(logarithm(x))], [x], "logarithm")
    np.testing.assert_allclose(run(model, ratio), np.log(ratio), atol=2e-3)
