"""What every runtime must do, whatever runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from filmloop.bundle import ONNX, load_golden
from filmloop.edge.runtimes.checks import check_finite, check_golden, phase_tolerance
from filmloop.edge.runtimes.cuda import CudaRuntime
from filmloop.edge.runtimes.make import make_runtime, tolerance_of
from filmloop.edge.runtimes.openvino import OpenVinoRuntime
from filmloop.edge.runtimes.pending import surprise_of
from filmloop.edge.runtimes.torch_cpu import TorchRuntime
from filmloop.training.load import load_module
from filmloop_models.catalog import get

from .conftest import SHAPE, RecordingEngine

BATCH = 48
SPEC = get("mixer")
NAMES = ("torch", "onnxruntime", "openvino-f32", "openvino-bf16", "openvino-int8", "cuda")
# Above 256 frames OpenVINO cuts a batch into parts.
LENGTHS = (1, 16, 17, 47, 48)


def make(name, bundle, batch_frames=BATCH):
    if name == "cuda":
        return CudaRuntime(
            load_module(bundle),
            version="3",
            frame_shape=SHAPE,
            batch_frames=batch_frames,
            sort_key=SPEC.sort_key,
            engine=RecordingEngine(),
        )
    return make_runtime(name, bundle, version="3", frame_shape=SHAPE, batch_frames=batch_frames, threads=2)


@pytest.fixture(scope="module", params=NAMES)
def runtime(request, bundle):
    made = make(request.param, bundle)
    yield made
    made.close()
    made.close()


@pytest.fixture(scope="module")
def tolerance(runtime):
    return tolerance_of(runtime.name, model=SPEC.tolerance, full=1e-3)


@pytest.fixture(scope="module")
def module(bundle):
    return load_module(bundle)


def draw(frames, seed=0):
    return np.random.default_rng(seed).poisson(0.2, (frames, *SHAPE)).astype(np.uint8)


def exact(module, counts):
    with torch.inference_mode():
        return module(torch.from_numpy(np.asarray(counts, np.float32))).numpy()


def relative(rates, wanted):
    assert rates.dtype == np.float32
    assert rates.shape == wanted.shape
    return float(np.sqrt(np.mean(np.square(rates - wanted)) / np.mean(np.square(wanted))))


def test_it_meets_its_golden_pair_on_every_way_and_makes_numbers_of_extreme_frames(runtime, tolerance, bundle):
    check_finite(runtime, SHAPE, BATCH)
    assert check_golden(runtime, *load_golden(bundle), tolerance=tolerance, sort_key=SPEC.sort_key) <= tolerance
    assert runtime.version == "3"


@pytest.mark.parametrize("frames", LENGTHS)
def test_a_batch_of_any_length_is_inferred(runtime, tolerance, module, frames):
    counts = draw(frames, seed=frames)
    inferred = runtime.start(counts, dense=True).result()
    assert relative(inferred.rate_NCE, exact(module, counts)) <= tolerance
    assert inferred.phase_N.shape == (frames,)


@pytest.mark.parametrize("frames", [1, 48, 49, 130])
def test_a_block_of_any_length_is_inferred_as_bytes_and_scaled(runtime, tolerance, module, frames):
    counts = draw(frames, seed=frames)
    assert relative(runtime.infer(counts), exact(module, counts)) <= tolerance
    scaled = counts.astype(np.float32) / np.float32(0.8)
    assert relative(runtime.infer(scaled), exact(module, scaled)) <= tolerance


@pytest.mark.parametrize("frames", [1, 17, 48])
def test_scaled_counts_go_through_as_batches_too_several_at_once(runtime, tolerance, module, frames):
    scaled = [draw(frames, seed=seed).astype(np.float32) * np.float32(1.3) for seed in range(runtime.lanes)]
    dense = [pending.result() for pending in [runtime.start(each, dense=True) for each in scaled]]
    keys = [pending.result() for pending in [runtime.start(each) for each in scaled]]
    for each, with_rates, alone in zip(scaled, dense, keys, strict=True):
        assert relative(with_rates.rate_NCE, exact(module, each)) <= tolerance
        assert alone.rate_NCE is None
        apart = np.angle(np.exp(1j * (alone.phase_N - SPEC.sort_key(exact(module, each)))))
        assert np.median(np.abs(apart)) < 0.02


def test_keys_are_those_of_the_rates_and_rates_come_only_where_they_are_asked_for(runtime):
    counts = draw(40)
    alone, dense = runtime.start(counts).result(), runtime.start(counts, dense=True).result()
    assert alone.rate_NCE is None
    assert alone.surprise_N is dense.surprise_N is None
    wanted = SPEC.sort_key(dense.rate_NCE)
    for phase in (alone.phase_N, dense.phase_N):
        assert phase.dtype == np.float32
        assert np.median(np.abs(np.angle(np.exp(1j * (phase - wanted))))) < 0.02


def test_surprise_is_half_the_poisson_deviance_under_its_own_rates(runtime):
    counts = draw(40)
    inferred = runtime.start(counts, dense=True, surprise=True).result()
    wanted = surprise_of(counts, inferred.rate_NCE)
    np.testing.assert_allclose(inferred.surprise_N, wanted, rtol=0.01)
    assert runtime.start(counts, surprise=True).result().rate_NCE is None


def test_surprise_is_zero_for_rates_that_are_the_counts_and_grows_with_the_misfit():
    counts = draw(4) + np.uint8(1)
    np.testing.assert_allclose(surprise_of(counts, counts.astype(np.float32)), 0, atol=1e-4)
    # One bin: r - n + n log(n / r) at n = 3, r = 1; an empty bin costs its rate.
    one = surprise_of(np.array([[[3, 0]]], np.uint8), np.array([[[1.0, 0.5]]], np.float32))
    assert one == pytest.approx([1 - 3 + 3 * np.log(3) + 0.5])


def test_a_result_stays_while_the_batch_after_the_next_is_not_finished(runtime):
    batches = [draw(BATCH, seed=seed) for seed in range(runtime.lanes + 2)]
    first = runtime.start(batches[0], dense=True).result()
    kept = first.rate_NCE.copy(), first.phase_N.copy()
    # The last of these waits for the next one, and nobody has taken the result of the one after that.
    pending = [runtime.start(batch, dense=True) for batch in batches[1:]]
    pending[-1].result()
    np.testing.assert_array_equal(first.rate_NCE, kept[0])
    np.testing.assert_array_equal(first.phase_N, kept[1])


def test_as_many_batches_as_it_has_lanes_are_under_way_at_once_and_each_gets_its_own(runtime):
    batches = [draw(BATCH, seed=seed) for seed in range(runtime.lanes)]
    alone = [runtime.start(batch, dense=True).result().rate_NCE.copy() for batch in batches]
    pending = [runtime.start(batch, dense=True) for batch in batches]
    for one, wanted in zip(pending, alone, strict=True):
        np.testing.assert_array_equal(one.result().rate_NCE, wanted)


def test_a_sample_of_any_size_leaves_the_batches_under_way_as_they_were(runtime):
    """The edge scores a sample between two batches; with `quality_every = 1` it is as many frames as came meanwhile."""
    batches = [draw(BATCH, seed=seed) for seed in range(runtime.lanes)]
    alone = [runtime.start(batch, surprise=True).result() for batch in batches]
    keys, surprise = ([getattr(one, name).copy() for one in alone] for name in ("phase_N", "surprise_N"))
    pending = [runtime.start(batch, surprise=True) for batch in batches]
    runtime.infer(draw(12 * BATCH, seed=9).astype(np.float32) / np.float32(0.8))
    np.testing.assert_array_equal([one.result().phase_N for one in pending], keys)
    np.testing.assert_array_equal([one.result().surprise_N for one in pending], surprise)


def test_one_batch_more_than_lanes_waits_instead_of_failing(runtime):
    pending = [runtime.start(draw(BATCH, seed=seed)) for seed in range(runtime.lanes + 3)]
    keys = [one.result().phase_N for one in pending]
    again = [runtime.start(draw(BATCH, seed=seed)).result().phase_N for seed in range(runtime.lanes + 3)]
    np.testing.assert_array_equal(keys, again)


def test_read_only_and_strided_counts_are_fine_and_stay_as_they_were(runtime):
    counts = draw(2 * BATCH)
    before, strided = counts.copy(), counts[::2]
    wanted = runtime.start(np.ascontiguousarray(strided)).result().phase_N
    counts.flags.writeable = False
    np.testing.assert_array_equal(runtime.start(strided).result().phase_N, wanted)
    runtime.start(counts[:BATCH]).result()
    np.testing.assert_array_equal(counts, before)


def test_a_backlog_of_many_small_batches_is_taken_at_once(runtime, tolerance, module):
    counts = draw(runtime.most_frames, seed=5)
    inferred = runtime.start(counts, dense=True).result()
    assert relative(inferred.rate_NCE, exact(module, counts)) < tolerance
    assert runtime.most_frames == {"cuda": BATCH, "torch": 256, "onnxruntime": 256}.get(runtime.name, 4096)
    off_N = inferred.phase_N[-BATCH:] - runtime.start(counts[-BATCH:]).result().phase_N
    assert np.median(np.abs(np.angle(np.exp(1j * off_N)))) < phase_tolerance(tolerance)


def test_a_batch_cut_over_the_streams_comes_back_in_order(bundle, module):
    runtime, counts = make("openvino-f32", bundle, batch_frames=600), draw(555)
    inferred = runtime.start(counts, dense=True).result()
    assert relative(inferred.rate_NCE, exact(module, counts)) < 1e-3
    runtime.close()


@pytest.mark.parametrize("name", ["torch", "openvino-f32", "cuda"])
def test_a_model_without_a_key_gives_none(name, bundle):
    common = {"version": "3", "frame_shape": SHAPE, "batch_frames": BATCH}  # and no sort_key
    if name == "torch":
        given = TorchRuntime(load_module(bundle), **common)
    elif name == "cuda":
        given = CudaRuntime(load_module(bundle), engine=RecordingEngine(), **common)
    else:
        given = OpenVinoRuntime(bundle / ONNX, name=name, **common)
    counts = draw(20)
    assert np.isnan(given.start(counts).result().phase_N).all()
    assert given.start(counts, dense=True).result().rate_NCE.shape == counts.shape
