"""The GPU runtime but for the device calls: a recording engine on the CPU stands in for captured graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from filmloop.bundle import load_golden
from filmloop.core.errors import ConfigError, VerificationError
from filmloop.edge.runtimes.checks import check_golden, check_served
from filmloop.edge.runtimes.cuda import CudaRuntime, is_available
from filmloop.edge.runtimes.make import require
from filmloop.ports.runtime import Wanted
from filmloop.training.load import load_module
from filmloop_models.catalog import get

from .conftest import SHAPE, RecordingEngine

SORT_KEY = get("mixer").sort_key


def runtime_of(bundle, batch_frames=32, **options):
    engine = RecordingEngine()
    made = CudaRuntime(
        load_module(bundle),
        version="1",
        frame_shape=SHAPE,
        batch_frames=batch_frames,
        sort_key=SORT_KEY,
        engine=engine,
        **options,
    )
    return made, engine


def test_new_weights_serve_in_graphs_that_were_captured_before(bundle, other_bundle):
    runtime, engine = runtime_of(bundle)
    check_golden(runtime, *load_golden(bundle), tolerance=1e-4, sort_key=SORT_KEY)
    captures = engine.captures
    runtime.put_weights(load_module(other_bundle), version="2")
    check_golden(runtime, *load_golden(other_bundle), tolerance=1e-4, sort_key=SORT_KEY)
    assert engine.captures == captures, "the graphs are those of before"
    assert runtime.version == "2"


def test_weights_that_a_captured_graph_does_not_read_are_caught(bundle, other_bundle):
    runtime, _ = runtime_of(bundle)
    wanted = Wanted(dense=True)
    check_served(runtime, *load_golden(bundle), tolerance=1e-4, wanted=wanted)
    runtime._module = load_module(other_bundle)  # exchanged, not copied: the trap
    with pytest.raises(VerificationError, match="differs from its golden pair"):
        check_served(runtime, *load_golden(other_bundle), tolerance=1e-4, wanted=wanted)


def test_keys_alone_that_are_stale_are_caught_too(bundle, other_bundle):
    runtime, _ = runtime_of(bundle)
    counts, golden = load_golden(other_bundle)
    runtime.start(counts).result()  # the graph for keys is captured, that for rates is not
    runtime._module = load_module(other_bundle)
    with pytest.raises(VerificationError, match="rad from those of"):
        check_served(runtime, counts, golden, tolerance=1e-4, sort_key=SORT_KEY)


def test_a_tuned_network_serves_full_batches_and_takes_new_weights_too(bundle, other_bundle):
    counts, _ = load_golden(bundle)
    runtime, engine = runtime_of(bundle, batch_frames=len(counts), tuned=True)
    assert engine.tunings == 1
    used = []
    runtime._full.register_forward_hook(lambda *_: used.append(1))
    check_golden(runtime, *load_golden(bundle), tolerance=1e-4, sort_key=SORT_KEY)
    assert used
    runtime.put_weights(load_module(other_bundle), version="2")
    check_golden(runtime, *load_golden(other_bundle), tolerance=1e-4, sort_key=SORT_KEY)


def test_the_module_that_was_given_stays_as_it_was(bundle, other_bundle):
    module = load_module(bundle)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    runtime = CudaRuntime(module, version="1", frame_shape=SHAPE, batch_frames=8, engine=RecordingEngine())
    runtime.put_weights(load_module(other_bundle), version="2")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_weights_of_another_network_are_refused_and_the_old_ones_serve_on(bundle):
    runtime, _ = runtime_of(bundle)
    with pytest.raises(ValueError, match="another network"):
        runtime.put_weights(get("mixer").module(SHAPE, {"features": 8}), version="2")
    check_served(runtime, *load_golden(bundle), tolerance=1e-4, sort_key=SORT_KEY)
    assert runtime.version == "1"


def test_one_graph_is_captured_for_each_size_lane_and_kind_of_result(bundle):
    runtime, engine = runtime_of(bundle)
    for frames in (1, 9, 16, 3):
        runtime.start(np.zeros((frames, *SHAPE), np.uint8)).result()
    assert engine.captures == 2, "16 frames at most, two lanes"
    runtime.start(np.zeros((17, *SHAPE), np.uint8)).result()
    runtime.start(np.zeros((2, *SHAPE), np.uint8), dense=True).result()
    assert engine.captures == 6


@pytest.mark.skipif(is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_a_configuration_error_with_a_hint():
    with pytest.raises(ConfigError, match="no CUDA device") as error:
        require("cuda")
    assert "auto" in error.value.hint
