"""Integers: what they make of ordinary frames, of a network with one loud feature, and of frames that are too bright for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from filmloop.core.errors import VerificationError
from filmloop.edge.runtimes.checks import check_bright
from filmloop.edge.runtimes.openvino import OpenVinoRuntime
from filmloop.edge.runtimes.openvino_graphs import has_bfloat16, precision
from filmloop.edge.runtimes.torch_cpu import TorchRuntime
from filmloop.training.export import export_onnx
from filmloop_models.catalog import get

SHAPE, BATCH = (16, 32), 48
SPEC = get("mixer")
RNG = np.random.default_rng(4)


class OneLoudFeature(nn.Module):
    """Of the 64 features between its two layers one is 200 times as large as the others."""

    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Linear(32, 64), nn.Linear(64, 32)
        with torch.no_grad():
            self.read.weight[7] *= 200
            self.write.weight[:, 7] /= 200

    def forward(self, counts):
        return self.write(torch.relu(self.read(counts)))


def counts_of(mean, frames=BATCH):
    return RNG.poisson(mean, (frames, *SHAPE)).astype(np.uint8)


def network(name):
    torch.manual_seed(3)
    return (OneLoudFeature() if name == "loud" else get(name).module(SHAPE)).eval()


def made(module, folder, calibration, name="openvino-int8", **more):
    if not (folder / "model.onnx").exists():
        export_onnx(module, SHAPE, folder / "model.onnx")
    given = {"version": "1", "frame_shape": SHAPE, "batch_frames": BATCH, "sort_key": SPEC.sort_key, "threads": 2}
    return OpenVinoRuntime(folder / "model.onnx", name=name, calibration_NCE=calibration, **{**given, **more})


def without_integers(module, folder):
    """In what int8 falls back to here: bfloat16 moves the key of a frame without a clear phase by much."""
    return made(module, folder, None, name=f"openvino-{precision('openvino-int8')}")


def rates_of(module, counts):
    with torch.inference_mode():
        return module(torch.from_numpy(counts.astype(np.float32))).numpy()


def relative(rates, wanted):
    return float(np.sqrt(np.mean(np.square(rates - wanted)) / np.mean(np.square(wanted))))


@pytest.fixture(params=["mixer", "cookienet"])
def module(request):
    return network(request.param)


def test_frames_like_those_of_the_calibration_come_out_within_three_hundredths(module, tmp_path):
    runtime, counts = made(module, tmp_path, counts_of(0.5)), counts_of(0.5)
    served = runtime.start(counts, dense=True).result()
    off = relative(served.rate_NCE, rates_of(module, counts))
    assert 1e-4 < off < 0.03, "integers, and near"


def test_a_feature_that_is_much_larger_than_the_others_does_not_cost_them_their_resolution(tmp_path):
    module, counts = network("loud"), counts_of(0.5)
    assert relative(made(module, tmp_path, counts).infer(counts), rates_of(module, counts)) < 0.01


def test_all_products_but_that_of_the_moments_run_in_integers_from_the_very_bytes(tmp_path):
    runtime = made(network("mixer"), tmp_path, counts_of(0.5))
    runtime.start(counts_of(0.5)).result()
    net = next(net for (kind, frames), net in runtime._graphs.made.items() if not kind.scaled and frames == BATCH)
    infos = [node.get_rt_info() for node in net.compiled.get_runtime_model().get_ops()]
    told = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    work = [precision for kind, precision in told if kind in ("FullyConnected", "Convolution")]
    assert (work.count(precision("openvino-int8")), work.count("u8") + work.count("i8")) == (1, 10), work
    assert "Convert" not in [kind for kind, _ in told], "nothing widens the counts"


@pytest.mark.parametrize("bright", [1, 7, 12, 13, 40, 48], ids=lambda frames: f"{frames} of 48 bright")
def test_frames_brighter_than_the_calibration_are_inferred_without_integers(module, tmp_path, bright):
    """Some of a batch are inferred again; a batch of them is not inferred in integers at all."""
    runtime, counts = made(module, tmp_path, counts_of(0.3)), counts_of(0.3)
    which = RNG.permutation(BATCH)[:bright]
    counts[which] = counts_of(6.0, bright)
    exact = rates_of(module, counts)
    served = runtime.start(counts, dense=True, surprise=True).result()
    assert relative(served.rate_NCE[which], exact[which]) < (0.01 if has_bfloat16() else 1e-4)
    others = np.setdiff1d(np.arange(BATCH), which)
    if len(others):
        assert relative(served.rate_NCE[others], exact[others]) < 0.03
    plain = without_integers(module, tmp_path).start(counts, dense=True, surprise=True).result()
    np.testing.assert_allclose(served.surprise_N[which], plain.surprise_N[which], rtol=0.02)
    apart = np.angle(np.exp(1j * (served.phase_N - plain.phase_N)))[which]
    assert np.abs(apart).max() < 0.02
    assert runtime.start(counts).result().phase_N[which] == pytest.approx(served.phase_N[which], abs=1e-3)


def test_several_batches_with_bright_frames_may_be_under_way(tmp_path):
    module = network("mixer")
    runtime = made(module, tmp_path, counts_of(0.3))
    batches = [counts_of(0.3, frames) for frames in (48, 17, 130, 48, 1, 250)]
    for number, counts in enumerate(batches):
        counts[number % len(counts)] = counts_of(9.0, 1)[0]
        if number == 2:
            counts[:100] = counts_of(9.0, 100)
    plain = without_integers(module, tmp_path)
    pending = [runtime.start(counts, dense=True) for counts in batches[: runtime.lanes]]
    for counts, each in zip(batches, pending, strict=False):
        served, wanted = each.result(), plain.start(counts, dense=True).result()
        assert relative(served.rate_NCE, wanted.rate_NCE) < 0.02
        assert served.phase_N.shape == (len(counts),)
    for counts in batches:
        assert relative(runtime.start(counts, dense=True).result().rate_NCE, rates_of(module, counts)) < 0.02


def test_a_sample_of_bright_frames_is_right_too(module, tmp_path):
    runtime, counts = made(module, tmp_path, counts_of(0.3), batch_frames=300), counts_of(6.0, 130)
    assert relative(runtime.infer(counts), rates_of(module, counts)) < 0.01


def test_no_graph_is_compiled_when_the_first_bright_frame_comes(tmp_path):
    runtime = made(network("mixer"), tmp_path, counts_of(0.3))
    counts = counts_of(0.3)
    runtime.start(counts).result()
    before = set(runtime._graphs.made)
    counts[3] = 9
    runtime.start(counts).result()
    runtime.start(counts_of(6.0)).result()
    assert set(runtime._graphs.made) == before


def test_integers_that_clip_a_brighter_beam_are_caught(tmp_path):
    module, dim, bright = network("cookienet"), counts_of(0.3, 8), counts_of(6.0, 8)
    exact = TorchRuntime(module, version="1", frame_shape=SHAPE, batch_frames=16)
    runtime = made(module, tmp_path, dim)
    check_bright(runtime, exact, bright, tolerance=0.05)
    assert runtime._graphs.quantise is not None
    runtime._graphs.quantise.most_hits = math.inf
    with pytest.raises(VerificationError, match="times as high"):
        check_bright(runtime, exact, bright, tolerance=0.2)
