"""The CUDA runtime on a GPU: exact enough, never stale, never mixed, with other threads at work."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pytest
import torch

from filmloop.bundle import RESULT, load_golden
from filmloop.config.schema import EdgeSection
from filmloop.core.documents import TrainResult
from filmloop.core.errors import VerificationError
from filmloop.edge.runtimes.candidates import Candidates
from filmloop.edge.runtimes.checks import check_golden, check_served
from filmloop.edge.runtimes.choose import runtime_for
from filmloop.edge.runtimes.cuda import CudaRuntime
from filmloop.edge.runtimes.measure import frames_per_s
from filmloop.ports.runtime import Wanted
from filmloop.testing.models import make_model_bundle
from filmloop.testing.training import simulated_counts
from filmloop.training.load import load_module
from filmloop_models.catalog import get

SHAPE = (16, 128)
SPEC = get("mixer")
EVERYTHING = Wanted(dense=True, surprise=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [make_model_bundle(folder / str(seed), seed=seed, onnx=True) for seed in (1, 2)]


@pytest.fixture
def runtime(bundles):
    made = made_of(bundles[0])
    yield made
    made.close()


def made_of(bundle, version="1", batch_frames=512):
    return CudaRuntime(
        load_module(bundle), version=version, frame_shape=SHAPE, batch_frames=batch_frames, sort_key=SPEC.sort_key
    )


def exact(bundle, counts_NCE):
    with torch.no_grad():
        return load_module(bundle).double()(torch.from_numpy(counts_NCE.astype(np.float64))).numpy()


def apart(a, b):
    return float(np.sqrt(np.mean(np.square(a - b)) / np.mean(np.square(b))))


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 63, 200, 511, 512])
def test_rates_keys_and_misfits_of_any_number_of_frames_are_those_of_float64(runtime, bundles, frames):
    counts_NCE = simulated_counts(frames)
    served, rate_NCE = runtime.start(counts_NCE, dense=True, surprise=True).result(), exact(bundles[0], counts_NCE)
    assert served.rate_NCE.shape == rate_NCE.shape
    assert apart(served.rate_NCE, rate_NCE) < SPEC.tolerance
    phase_N = runtime.start(counts_NCE).result().phase_N
    # An untrained network's key hangs on small differences here and there; a wrong one would be off by a radian.
    off_N = np.abs(np.angle(np.exp(1j * (phase_N - SPEC.sort_key(rate_NCE)))))
    assert np.median(off_N) < 0.02
    assert np.max(off_N) < 0.5
    n, safe = counts_NCE.astype(np.float64), np.maximum(rate_NCE, 1e-6)
    surprise_N = (safe - n + n * (np.log(np.maximum(n, 1)) - np.log(safe))).sum(axis=(1, 2))
    np.testing.assert_allclose(served.surprise_N, surprise_N, rtol=0.02)


def test_new_weights_serve_in_graphs_captured_before_and_old_ones_are_refused(runtime, bundles):
    check_golden(runtime, *load_golden(bundles[0]), tolerance=SPEC.tolerance, sort_key=SPEC.sort_key, wanted=EVERYTHING)
    runtime.put_weights(load_module(bundles[1]), version="2")
    check_golden(runtime, *load_golden(bundles[1]), tolerance=SPEC.tolerance, sort_key=SPEC.sort_key, wanted=EVERYTHING)
    with pytest.raises(VerificationError):
        check_served(runtime, *load_golden(bundles[0]), tolerance=SPEC.tolerance, sort_key=SPEC.sort_key)


def test_a_tuned_network_serves_full_batches_and_new_weights_too(bundles):
    made = CudaRuntime(
        load_module(bundles[0]), version="1", frame_shape=SHAPE, batch_frames=256, sort_key=SPEC.sort_key, tuned=True
    )
    counts_NCE = simulated_counts(256)
    for bundle in bundles:
        made.put_weights(load_module(bundle), version="2")
        assert apart(made.start(counts_NCE, dense=True).result().rate_NCE, exact(bundle, counts_NCE)) < SPEC.tolerance
        assert (
            apart(made.start(counts_NCE[:100], dense=True).result().rate_NCE, exact(bundle, counts_NCE[:100]))
            < SPEC.tolerance
        )
    made.close()


def test_a_module_that_is_exchanged_leaves_captured_graphs_stale_and_that_is_caught(runtime, bundles):
    counts_NCE, golden_NCE = load_golden(bundles[1])
    runtime.start(counts_NCE, dense=True).result()
    runtime._module = load_module(bundles[1]).to("cuda", torch.bfloat16)
    with pytest.raises(VerificationError):
        check_served(runtime, counts_NCE, golden_NCE, tolerance=SPEC.tolerance, wanted=Wanted(dense=True))


def test_batches_under_way_never_mix_and_results_stay_until_the_batch_after_the_next(runtime, bundles):
    counts_NCE = simulated_counts(64 * 37)
    phase_N = runtime.start(counts_NCE[:512]).result().phase_N
    assert np.isfinite(phase_N).any()
    sizes = np.random.default_rng(0).integers(1, 200, 400)
    waiting, kept, expected = deque(), deque(), {}
    whole_N = SPEC.sort_key(exact(bundles[0], counts_NCE))
    for number, size in enumerate(sizes):
        start = int(number * 61 % (len(counts_NCE) - 200))
        expected[number] = slice(start, start + int(size))
        waiting.append((number, runtime.start(counts_NCE[expected[number]], dense=number % 3 == 0)))
        if len(waiting) == runtime.lanes:
            done, pending = waiting.popleft()
            kept.append((done, pending.result().phase_N))
        if len(kept) > 2:
            done, got_N = kept.popleft()
            assert np.median(np.abs(np.angle(np.exp(1j * (got_N - whole_N[expected[done]]))))) < 0.05


def test_a_model_is_prepared_in_another_thread_while_this_one_serves(runtime, bundles):
    counts_NCE, golden_NCE = load_golden(bundles[0])
    prepared, failed = [], []

    def prepare():
        try:
            for _ in range(5):
                made = made_of(bundles[1], "2")
                check_golden(made, *load_golden(bundles[1]), tolerance=SPEC.tolerance, sort_key=SPEC.sort_key)
                made.close()
                prepared.append(made)
        except Exception as exc:
            failed.append(exc)

    thread, served = threading.Thread(target=prepare), 0
    thread.start()
    while thread.is_alive():
        assert apart(runtime.start(counts_NCE, dense=True).result().rate_NCE, golden_NCE) < SPEC.tolerance
        served += 1
    thread.join()
    assert (failed, len(prepared)) == ([], 5)
    assert served > 5


def test_auto_takes_the_gpu_and_it_is_faster_than_the_cpu(bundles, tmp_path):
    candidates = Candidates(
        bundle=bundles[0], version="1", model=TrainResult.read(bundles[0] / RESULT).model, edge=EdgeSection()
    )
    made, choice = runtime_for(candidates, tmp_path / "choice.json")
    made.close()
    assert choice.name == "cuda", choice
    assert choice.batch_frames == 4096
    assert "not measured" in choice.dropped["torch"]
    on_cpu = frames_per_s(candidates.made("torch", 256), np.zeros((256, *SHAPE), np.uint8), 0.2)
    others = [rate for name, rate in choice.frames_per_s.items() if name != "cuda"]
    assert choice.frames_per_s["cuda"] > 2 * max(on_cpu, *others)


def test_memory_does_not_grow_from_version_to_version(bundles):
    allocated = []
    for _ in range(60):
        made = made_of(bundles[0])
        made.start(simulated_counts(100), dense=True).result()
        made.close()
        del made
        allocated.append(torch.cuda.memory_allocated())
    print(allocated[::6])
    # cuBLAS keeps a workspace for each of PyTorch's 32 streams: all have been used after 20 runtimes.
    assert allocated[-1] - allocated[20] < 5e6
