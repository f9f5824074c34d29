from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from filmloop.bundle import GOLDEN, ONNX, RESULT
from filmloop.config.schema import EdgeSection
from filmloop.core.documents import TrainResult
from filmloop.core.errors import ConfigError, VerificationError
from filmloop.edge.runtimes import choose as choosing
from filmloop.edge.runtimes.candidates import Candidates
from filmloop.edge.runtimes.choose import RuntimeChoice, choose, runtime_for
from filmloop.edge.runtimes.make import NAMES, is_emulated, make_runtime

from .conftest import SHAPE


def candidates(bundle, version="1", **edge):
    given = EdgeSection(**{"batch_frames": 32, "threads": 1, **edge})
    return Candidates(bundle=bundle, version=version, model=TrainResult.read(bundle / RESULT).model, edge=given)


@pytest.fixture
def no_measuring(monkeypatch):
    def measured(*_):
        raise AssertionError("it measures")

    return lambda: monkeypatch.setattr(choosing, "_measured", measured)


def test_the_fastest_of_what_is_here_and_exact_enough_is_chosen_once(bundle, other_bundle, tmp_path, no_measuring):
    cache = tmp_path / "edge" / "runtime.json"
    runtime, choice = runtime_for(candidates(bundle), cache)
    fastest_hz = max(choice.frames_per_s.values())
    as_fast = [name for name, rate_hz in choice.frames_per_s.items() if rate_hz >= 0.9 * fastest_hz]
    assert runtime.name == choice.name == min(as_fast, key=choice.relative_rms.get)
    assert runtime.batch_frames == choice.batch_frames <= 32
    assert {*choice.frames_per_s, *choice.dropped} == set(NAMES)
    assert {"openvino-f32", "openvino-int8"} <= set(choice.frames_per_s)
    assert choice.relative_rms["openvino-int8"] < 0.05
    assert RuntimeChoice.read(cache) == choice
    no_measuring()
    again, kept = runtime_for(candidates(other_bundle, version="2"), cache)
    assert (again.name, again.version, kept) == (choice.name, "2", choice)


def test_what_is_measured_is_measured_plainly_and_what_is_known_is_loaded_gently_and_warm(bundle, tmp_path):
    """A seat that stands by gives way: what it measured then would be kept, and is no tenth of what it is worth."""

    class Noting:
        def __init__(self):
            self.said = []

        def gently(self, work):
            self.said.append("gently")
            return work()

        def plainly(self, work):
            self.said.append("plainly")
            return work()

    pace, warm, cache = Noting(), [], tmp_path / "runtime.json"
    first, _ = runtime_for(candidates(bundle), cache, pace=pace, warm_up=warm.append)
    assert pace.said == ["plainly"]
    again, _ = runtime_for(candidates(bundle), cache, pace=pace, warm_up=warm.append)
    named, _ = runtime_for(candidates(bundle, runtime="onnxruntime"), cache, pace=pace, warm_up=warm.append)
    assert pace.said == ["plainly", "gently", "gently"]
    assert warm == [first, again, named]


def test_a_precision_that_this_machine_only_emulates_is_not_measured(bundle, tmp_path):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    has_units = any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "avx_ne_convert"))
    assert is_emulated("openvino-bf16") is not has_units
    assert not is_emulated("openvino-int8")
    _, choice = runtime_for(candidates(bundle), tmp_path / "runtime.json")
    assert ("openvino-bf16" in choice.frames_per_s) is has_units
    assert has_units or "no units" in choice.dropped["openvino-bf16"]


@pytest.mark.parametrize("changed", [{"threads": 2}, {"latency_budget_ms": 5.0}, {"batch_frames": 16}])
def test_other_settings_are_measured_anew(bundle, changed):
    assert candidates(bundle, **changed).key() != candidates(bundle).key()


def test_a_choice_kept_for_something_else_or_damaged_is_made_anew(bundle, tmp_path, monkeypatch):
    cache = tmp_path / "runtime.json"
    made = RuntimeChoice(
        name="torch", batch_frames=4, reason="", frames_per_s={}, relative_rms={}, dropped={}, key="of another machine"
    )

    def chosen(given):
        return given.proven("torch", 4)[0], made.model_copy(update={"key": given.key()})

    monkeypatch.setattr(choosing, "choose", chosen)
    made.write(cache)
    assert runtime_for(candidates(bundle), cache)[0].batch_frames == 4
    assert RuntimeChoice.read(cache).key == candidates(bundle).key()
    cache.write_text("{", encoding="utf-8")
    runtime_for(candidates(bundle), cache)
    assert RuntimeChoice.read(cache).key == candidates(bundle).key()


def test_weights_that_the_kept_choice_does_not_serve_get_one_of_their_own_and_it_stays_for_the_next(bundle, tmp_path):
    """These have no model.onnx, which the choice needs."""
    cache = tmp_path / "runtime.json"
    plain = shutil.copytree(bundle, tmp_path / "plain")
    (plain / ONNX).unlink()
    kept = RuntimeChoice(
        name="openvino-f32",
        batch_frames=8,
        reason="",
        frames_per_s={},
        relative_rms={},
        dropped={},
        key=candidates(plain).key(),
    )
    kept.write(cache)
    runtime, choice = runtime_for(candidates(plain), cache)
    assert runtime.name == choice.name == "torch"
    assert "no model.onnx" in choice.dropped["openvino-f32"]
    assert RuntimeChoice.read(cache) == kept


def test_a_package_that_is_missing_is_no_candidate_and_named_it_is_a_configuration_error(bundle, monkeypatch):
    monkeypatch.delitem(sys.modules, "filmloop.edge.runtimes.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "filmloop.edge.runtimes.graph", raising=False)
    _, choice = choose(candidates(bundle))
    assert choice.name in ("torch", "onnxruntime")
    assert "not installed" in choice.dropped["openvino-bf16"]
    with pytest.raises(ConfigError, match="openvino-bf16 is not installed") as error:
        make_runtime("openvino-bf16", bundle, version="1", frame_shape=SHAPE, batch_frames=8)
    assert "pip install -c constraints.txt -e '.[edge]'" in error.value.hint


def test_batches_are_as_small_as_half_the_latency_budget_asks(bundle):
    # 10 us for a batch: not even one frame of any runtime.
    _, choice = choose(candidates(bundle, latency_budget_ms=0.02))
    assert choice.batch_frames <= 4


def test_what_is_not_exact_enough_is_dropped_and_if_nothing_is_the_version_is_refused(bundle):
    # In float32 OpenVINO's softplus is a polynomial, right to 1.3e-4; in eight bits nothing is as exact as that.
    _, choice = choose(candidates(bundle, golden_tolerance=1e-6))
    assert "openvino-f32" in choice.dropped
    assert choice.name != "openvino-f32"
    with pytest.raises(VerificationError, match="torch differs from its golden pair"):
        choose(candidates(_shifted(bundle)))


def test_who_is_far_behind_in_a_small_batch_is_not_measured_and_said_to_be(bundle, monkeypatch):
    real = choosing.batch_s

    def slowed(runtime, *args, **keys):
        return real(runtime, *args, **keys) * (1e6 if runtime.name == "onnxruntime" else 1)

    monkeypatch.setattr(choosing, "batch_s", slowed)
    runtime, choice = choose(candidates(bundle))
    assert runtime.name == choice.name != "onnxruntime"
    assert "onnxruntime" not in choice.frames_per_s
    assert "onnxruntime makes" in choice.dropped["onnxruntime"]
    assert runtime.infer(np.zeros((2, *SHAPE), np.uint8)).shape == (2, *SHAPE), "it is open"


@pytest.mark.parametrize(
    ("int8_hz", "f32_hz", "chosen"),
    [
        (1000, 700, "openvino-int8"),
        (1000, 890, "openvino-int8"),
        (1000, 910, "openvino-f32"),
        (700, 1000, "openvino-f32"),
    ],
)
def test_of_those_that_are_as_fast_the_most_exact_one_is_taken(bundle, monkeypatch, int8_hz, f32_hz, chosen):
    rates_hz = {"openvino-int8": int8_hz, "openvino-f32": f32_hz}
    monkeypatch.setattr(choosing, "frames_per_s", lambda runtime, *_: float(rates_hz.get(runtime.name, 1)))
    runtime, choice = choose(candidates(bundle))
    assert runtime.name == choice.name == chosen
    assert ("fastest of" in choice.reason) is (rates_hz[chosen] == 1000)
    assert runtime.infer(np.zeros((2, *SHAPE), np.uint8)).shape == (2, *SHAPE), "it is open"


_WITHOUT_TORCH = """\
import sys
from pathlib import Path
import filmloop.edge.service
from filmloop.bundle import RESULT
from filmloop.config.schema import EdgeSection
from filmloop.core.documents import TrainResult
from filmloop.edge.runtimes import Candidates, runtime_for

bundle, cache = map(Path, sys.argv[1:])
model = TrainResult.read(bundle / RESULT).model
_, choice = runtime_for(Candidates(bundle=bundle, version="1", model=model, edge=EdgeSection(batch_frames=16)), cache)
print(choice.name, choice.dropped["torch"], "torch" in sys.modules, sep="; ")
"""


def test_an_edge_that_has_something_faster_never_loads_pytorch(bundle, tmp_path):
    """It takes 1 to 3 s of a start, and 200 MB of memory."""
    argv = [sys.executable, "-c", _WITHOUT_TORCH, str(bundle), str(tmp_path / "runtime.json")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    assert said.endswith("not measured: it is for machines that have nothing else; False"), said


def test_a_named_runtime_is_taken_and_nothing_is_measured(bundle, tmp_path, no_measuring):
    no_measuring()
    runtime, choice = runtime_for(candidates(bundle, runtime="onnxruntime"), tmp_path / "runtime.json")
    assert runtime.name == choice.name == "onnxruntime"
    assert choice.reason == "named in the site file"
    assert not (tmp_path / "runtime.json").exists()


def _shifted(bundle):
    copy = bundle.with_name("shifted")
    shutil.copytree(bundle, copy)
    arrays = load_file(copy / GOLDEN)
    save_file({**arrays, "rate_NCE": arrays["rate_NCE"] * np.float32(1.2)}, copy / GOLDEN)
    return copy
