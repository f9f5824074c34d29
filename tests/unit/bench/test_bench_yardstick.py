"""The least program that the edge is measured against is as fast as this machine lets it be."""

from __future__ import annotations

import time

import numpy as np

from filmloop.bench.yardstick import yardstick
from filmloop.bundle import ONNX
from filmloop.testing.models import make_model_bundle
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

BLOCK_FRAMES = 256


def frames_per_s(onnx, counts_NCE, precision):
    """Of one request after the other, which is the slowest way."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(onnx)
    model.reshape([BLOCK_FRAMES, *counts_NCE.shape[1:]])
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision}).create_infer_request()
    given = counts_NCE[:BLOCK_FRAMES].astype(np.float32)
    request.infer([given])
    took_s = []
    for _ in range(5):
        begun_s = time.perf_counter()
        request.infer([given])
        took_s.append(time.perf_counter() - begun_s)
    return BLOCK_FRAMES / min(took_s)


def test_the_yardstick_runs_in_the_precision_that_is_fast_on_this_machine(tmp_path):
    """A CPU without bfloat16 units emulates it, at a thirtieth of the rate: a peer that anything beats."""
    onnx = make_model_bundle(tmp_path / "bundle", onnx=True) / ONNX
    counts_NCE = CookieBoxSimulator(Conditions(), seed=1).frames(0, 4096).counts_NCE
    np.save(tmp_path / "pool.npy", counts_NCE)
    # In turn, three times: a neighbour that takes a core for a moment makes neither of them the slower one.
    tried = [{precision: frames_per_s(onnx, counts_NCE, precision) for precision in ("f32", "bf16")} for _ in range(3)]
    rates = {precision: max(each[precision] for each in tried) for precision in ("f32", "bf16")}
    pace = yardstick(onnx, tmp_path / "pool.npy", 1.0, staged=False)
    assert pace.frames_per_s > 0.3 * max(rates.values()), (pace, rates)
    slower = min(rates, key=rates.get)
    assert pace.precision != slower or min(rates.values()) > 0.5 * max(rates.values()), (pace, rates)
