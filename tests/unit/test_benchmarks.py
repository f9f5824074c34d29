"""Every benchmark runs, prints one JSON line with the keys that the documentation quotes, and can find a lost frame."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from filmloop.bench.edge import count_lost
from filmloop.bench.swap import KeyChecker
from filmloop.cli import bench
from filmloop.core.documents import Accounting
from filmloop.testing.shards import example_block, write_shard

CHECKOUT = Path(__file__).parents[2]
BENCHMARKS = CHECKOUT / "benchmarks"
COMMON = {"benchmark", "quick", "date", "command", "machine", "versions"}
COMMANDS = {
    "edge": {"frames_in", "frames_out", "lost", "rate_hz", "bare_rate_hz", "ratio", "cores"},
    "stage": {"frames_per_cpu_s", "ratio_to_zarr_python", "ratio_to_h5py", "peak_mb", "bytes_per_frame"},
    "swap": {"swaps", "lost", "mixed", "unverified", "p99_ratio", "p99_growth"},
    "latency": {"latency", "seconds_each"},
    "soak": {"frames_in", "lost", "rss_mb", "growth", "p99_ms", "restarts"},
    "sources": {"pool", "simulator", "replay", "zeromq_raw_ipc", "zeromq_raw_tcp", "pvaccess"},
    "cycle": {
        "overhead_cold_s",
        "overhead_warm_s",
        "overhead_to_training",
        "steps_cold",
        "steps_warm",
        "recovery",
    },
    "drift": {"false_alarms", "quiet_windows", "stated_rate", "found", "frames_worst", "right_kind", "gain_correction"},
    "model": {"model", "steps", "steps_mixer", "frames", "hits_50", "hits_650"},
    "inference": {"model", "frames_per_s", "relative_rms", "to_onnxruntime", "to_torch_eager"},
    "train": {"speedup_2", "frames_per_s", "epoch_s", "loader_idle_share", "loader", "step_ms", "together_ms"},
    "globus": {"files", "mover", "one_task_per_file", "ratios", "api_s", "emulated"},
    "warmstart": {
        "steps_ratio",
        "steps_ratio_low",
        "steps_ratio_high",
        "seeds",
        "scratch",
        "warm",
        "returning",
        "forgetting",
    },
}
SCRIPTS = {
    "gpu": {"model", "ok", "swap_ok", "frames_per_s", "dense_frames_per_s", "device_frames_per_s", "fraction_of_floor"},
}

# Results of the time before `filmloop bench` lack what it has added since.
PROMISED = {
    **SCRIPTS,
    "cycle": {"overhead_cold_s", "overhead_warm_s", "overhead_to_training", "steps_cold", "steps_warm"},
    "edge": {"frames_in", "frames_out", "rate_hz", "bare_rate_hz", "ratio"},
    "stage": {"frames_per_cpu_s", "ratio_to_zarr_python", "ratio_to_h5py"},
    "swap": {"swaps", "mixed", "p99_ratio"},
}


def run(name, argv, keys, tmp_path):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "it leaves something behind"
    line, *more = done.stdout.splitlines()
    assert more == []
    value = json.loads(line)
    assert set(value) >= COMMON | keys
    assert value["benchmark"] == name
    assert value["quick"] is True
    return value


def quick_command(name, tmp_path, *options):
    argv = [sys.executable, "-m", "filmloop.cli", "bench", name, "--quick", "--json", *options]
    value = run(name, argv, COMMANDS[name], tmp_path)
    assert value["command"].startswith(f"filmloop bench {name} --quick")
    return value


def test_every_benchmark_is_run_below():
    assert {command.callback.__name__ for command in bench.app.registered_commands} == set(COMMANDS)
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(SCRIPTS)


def test_make_bench_runs_every_benchmark():
    (names,) = re.findall(
        r"for name in ([a-z ]+); do \$\(RUN\) bench", (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    )
    assert set(names.split()) == set(COMMANDS)


@pytest.mark.slow
def test_the_edge_benchmark_loses_nothing(tmp_path):
    value = quick_command("edge", tmp_path, "--folder", str(tmp_path))
    assert value["lost"] == 0
    assert value["frames_in"] == value["frames_out"] > 0
    assert set(value["cores"]) == {"source", "inference", "staging"}


def test_the_staging_benchmark_compares_writers_of_the_same_arrays(tmp_path):
    value = quick_command("stage", tmp_path, "--folder", str(tmp_path))
    assert value["bytes_per_frame"]["filmloop"] == pytest.approx(value["bytes_per_frame"]["zarr_python"], rel=0.01)


def test_the_globus_benchmark_counts_what_a_cycle_asks_for(tmp_path):
    value = quick_command("globus", tmp_path, "--folder", str(tmp_path))
    assert value["one_task_per_file"]["tasks"] == value["files"]
    assert value["mover"]["tasks"] == 2
    assert set(value["ratios"]) == {"requests", "post_bytes", "tasks"}


@pytest.mark.slow
def test_the_swap_benchmark_swaps_and_loses_nothing_at_a_rate_that_any_machine_takes(tmp_path):
    value = quick_command("swap", tmp_path, "--rate-hz", "2000", "--folder", str(tmp_path))
    assert value["swaps"] == 10
    assert value["lost"] == value["unverified"] == 0
    assert value["mixed"] == 0
    assert value["judged"] > 0


@pytest.mark.slow
def test_the_soak_loses_nothing_at_a_rate_that_any_machine_takes(tmp_path):
    value = quick_command("soak", tmp_path, "--rate-hz", "2000", "--folder", str(tmp_path))
    assert value["lost"] == 0
    assert value["frames_in"] > 0
    assert set(value["rss_mb"]) == {"source", "inference", "staging"}


@pytest.mark.slow
def test_the_latency_benchmark_runs_every_rate_with_every_budget(tmp_path):
    value = quick_command("latency", tmp_path, "--folder", str(tmp_path))
    assert len({(each["rate_hz"], each["latency_budget_ms"]) for each in value["latency"]}) == 6
    assert all(each["batches"] > 0 and 0 < each["p50_ms"] <= each["p99_ms"] for each in value["latency"])


@pytest.mark.slow
def test_the_source_benchmark_reads_every_kind_beside_its_peer(tmp_path):
    value = quick_command("sources", tmp_path)
    peers = [each for each in value.values() if isinstance(each, dict) and "peer" in each]
    assert len(peers) >= 8
    assert all(each["frames_per_s"] > 0 and each["peer"]["frames_per_s"] > 0 for each in peers)


@pytest.mark.slow
def test_the_model_benchmark_scores_every_method_in_both_regimes(tmp_path):
    value = quick_command("model", tmp_path)
    for regime, hits in (("hits_50", 50), ("hits_650", 650)):
        scores = value[regime]
        assert scores["hits_per_frame"] == pytest.approx(hits, rel=0.3)
        for method in ("", "_mixer", "_gaussian", "_pursuit"):
            assert 0 < scores["mse" + method] < scores["mse_zero"] * 1.01
            assert 0 <= scores["pulse_count" + method] <= 1
            assert 0 <= scores["pulses_found" + method] <= 1
            assert f"phase_error_deg{method}" in scores
        # Two steps of training: the physics alone already beats a Gaussian tuned on labels.
        assert scores["mse"] < scores["mse_gaussian"]


@pytest.mark.slow
def test_the_inference_benchmark_runs_as_a_command(tmp_path):
    value = quick_command("inference", tmp_path)
    assert value["frames_per_s"]["torch"] > 0


@pytest.mark.slow
def test_the_training_benchmark_trains_with_one_and_two_processes(tmp_path):
    value = quick_command("train", tmp_path, "--folder", str(tmp_path))
    assert set(value["frames_per_s"]) == set(value["epoch_s"]) == set(value["loader_idle_share"]) == {"1", "2"}
    assert all(0 < share < 1 for share in value["loader_idle_share"].values())
    assert value["step_ms"]["all"] == pytest.approx(sum(value["step_ms"].values()) / 2, abs=0.1)
    assert min(value["loader"]["frames_per_s"].values()) > 0
    assert value["speedup_apart"] > 0
    assert value["together_to_apart"] > 0


@pytest.mark.slow
def test_the_drift_benchmark_finds_every_drift_and_names_it(tmp_path):
    value = quick_command("drift", tmp_path)
    assert value["found"] == 1.0
    assert value["right_kind"] > 0.8
    assert value["false_alarms"] == 0


def test_a_drift_that_a_seed_has_not_found_leaves_no_worst_time_to_be_quoted():
    from filmloop.bench.drift import worst

    assert worst([{"frames_worst": 609}, {"frames_worst": 3342}]) == 3342
    assert worst([{"frames_worst": 609}, {"frames_worst": None}]) is None


@pytest.mark.slow
def test_the_warm_start_benchmark_trains_both_ways_and_asks_the_zoo_at_every_condition(tmp_path):
    value = quick_command("warmstart", tmp_path, "--folder", str(tmp_path))
    (seed,) = value["per_seed"]
    assert len(seed["ancestors"]) == 4
    assert 0 < seed["scratch_steps"]["0.001"] <= 16
    assert seed["scratch_steps"]["0.01"] <= seed["scratch_steps"]["0.001"]
    assert value["returning"]["of"] == value["seeds"] == 1
    assert set(value["forgetting"]) >= {"margin", "zoo", "live", "within_margin"}


def test_a_ratio_of_steps_has_the_interval_of_its_seeds():
    from filmloop.bench.warmstart import geometric_mean

    assert geometric_mean([4.0]) == (4.0, None, None)
    # Logarithms 1, 2, 3 have mean 2, deviation 1: half an interval is 4.303 / sqrt(3).
    mean, low, high = geometric_mean([np.e, np.e**2, np.e**3])
    assert mean == pytest.approx(np.e**2, rel=1e-3)
    assert (low, high) == pytest.approx((np.exp(2 - 4.303 / 3**0.5), np.exp(2 + 4.303 / 3**0.5)), rel=1e-2)
    # Eleven of 0 and 1 in turn: deviation .5222, 10 degrees of freedom.
    mean, low, _high = geometric_mean([np.e ** (number % 2) for number in range(11)])
    assert np.log(mean / low) == pytest.approx(2.228 * 0.5222 / 11**0.5, abs=0.02)


def test_the_gpu_benchmark_says_so_where_there_is_no_gpu_and_ends_well(tmp_path):
    argv = [sys.executable, str(BENCHMARKS / "gpu.py"), "--quick"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=hidden)
    assert (done.returncode, done.stderr.strip()) == (0, "no CUDA device: not measured")
    assert json.loads(done.stdout) == {"benchmark": "gpu", "skipped": "no CUDA device"}


def test_the_gpu_benchmark_needs_torch_and_numpy_only():
    code = "import sys, gpu; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=BENCHMARKS)
    heavy = {"openvino", "onnxruntime", "onnx", "mlflow", "zarr", "pydantic", "safetensors", "h5py"}
    assert set(done.stdout.split()) & heavy == set()


@pytest.mark.usefixtures("benchmark_folder")
def test_the_gpu_benchmark_counts_operations_and_bytes_as_published():
    import gpu

    # 1.84, 55.2 and 442 MFLOP; a 16x128 frame in and out in bf16 is 8 kB, the activations of the larger ones 0.76 and 6.1 MB.
    wanted = {"mixer": (1.84e6, 8192), "cookienet": (55.2e6, 0.76e6), "cookienet128": (441.5e6, 6.06e6)}
    for name, (operations, size_bytes) in wanted.items():
        floors = gpu.floors(gpu.network(name, 1), gpu.SHAPES[name], "NVIDIA H200")
        assert floors["operations_per_frame"] == pytest.approx(operations, rel=0.01)
        assert floors["bytes_per_frame"] == pytest.approx(size_bytes, rel=0.1)
        assert floors["floor_frames_per_s"] < 790e12 / operations * 1.01


@pytest.mark.usefixtures("benchmark_folder")
def test_the_gpu_benchmarks_measurement_runs_and_its_swap_check_finds_stale_weights(monkeypatch):
    """On the CPU, in float32, with a stand-in for the device calls: everything but the speed."""
    import torch

    import gpu

    def slowly(work, stream, pool):
        time.sleep(0.05)
        return work

    class Engine:
        device, dtype = torch.device("cpu"), torch.float32
        pinned = staticmethod(lambda shape, dtype: torch.zeros(shape, dtype=dtype))
        stream = pool = staticmethod(lambda: None)
        on = staticmethod(lambda stream: nullcontext())
        capture = staticmethod(slowly)
        done = staticmethod(lambda stream: lambda: None)

    monkeypatch.setattr(gpu, "CudaRuntime", partial(gpu.CudaRuntime, engine=Engine()))
    monkeypatch.setattr(gpu, "BATCH", {"mixer": 64})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a CPU")
    value = gpu.measure("mixer", seconds=0.02, tuned=False)
    assert value["ok"]
    assert value["swap_ok"]
    assert value["relative_rms"] < 1e-5
    assert value["first_batch_s"] >= 2 * 0.05, "both lanes capture their graph in it"
    monkeypatch.setattr(gpu.CudaRuntime.func, "put_weights", lambda self, module, version: None)
    assert not gpu.measure("mixer", seconds=0.02, tuned=False)["swap_ok"]


def test_bare_inference_rates_name_every_runtime_beside_its_peers():
    from filmloop.bench.inference import measure

    value = measure("mixer", 0.5)
    there = {"torch", "onnxruntime", "openvino-f32", "openvino-bf16", "openvino-int8"}
    assert there <= set(value["relative_rms"])
    assert there | {"torch-eager"} <= set(value["frames_per_s"])
    assert value["to_onnxruntime"]["onnxruntime"] == value["to_torch_eager"]["torch-eager"] == 1
    assert value["relative_rms"]["openvino-bf16"] < 0.02
    assert min(value["frames_per_s"].values()) > 100


@pytest.mark.slow
def test_the_cycle_benchmark_runs_a_cold_and_a_warm_cycle(tmp_path):
    value = quick_command("cycle", tmp_path, "--folder", str(tmp_path))
    assert value["overhead_warm_s"] > 0
    for steps in (value["steps_cold"], value["steps_warm"]):
        assert {"setup", "seal", "move", "train", "fetch", "judge", "register"} <= set(steps)
    assert len(value["outcomes"]) == 2
    assert "failed" not in value["outcomes"]
    recovery = value["recovery"]
    assert recovery["nll_before"] != recovery["nll_drifted"]
    assert recovery["cycle_began_s"] > 0
    assert (recovery["recovered_s"] is None) == (recovery["recovered_frames"] is None)


@pytest.fixture
def benchmark_folder(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize(
    ("staged", "inferred", "reasons", "lost"),
    [
        ([range(4)], 4, ({}, {}), 0),
        ([range(3)], 4, ({}, {}), 1),
        ([range(2), range(1, 3)], 4, ({}, {}), 2),
        ([range(4)], 3, ({"no_model": 1}, {}), 1),
        ([range(3)], 3, ({"no_model": 1}, {"queue_full": 1}), 2),
        ([range(1)], 1, ({"overflow": 3}, {"overflow": 3}), 3),
    ],
    ids=[
        "all",
        "not staged",
        "staged twice, another not",
        "not inferred",
        "one not inferred, one not staged",
        "neither",
    ],
)
def test_a_frame_that_is_missing_twice_there_or_not_inferred_is_found_once(staged, inferred, reasons, lost, tmp_path):
    for seq, ids in enumerate(staged):
        write_shard(tmp_path, example_block(len(ids), first_pulse_id=ids[0]), stream="bench", seq=seq)
    dropped, unstaged = reasons
    accounting = Accounting(frames_in=4, frames_inferred=inferred, frames_dropped=dropped, frames_unstaged=unstaged)
    frames, found = count_lost(tmp_path, accounting)
    assert (frames, found) == (sum(map(len, staged)), lost)


def test_a_frame_with_the_key_of_the_other_version_is_found(tmp_path):
    own, other = np.array([0.0, 0.0, 0.0, 0.0], np.float32), np.array([2.0, 2.0, 0.1, 2.0], np.float32)
    checker = KeyChecker(tmp_path, {1: own, 2: other})
    reader = SimpleNamespace(
        pulse_id_N=np.arange(4, dtype=np.uint64),
        version_N=np.array([1, 1, 1, 2], np.uint32),
        # As it should be; the other's; of a frame on which both agree; the first version's under the second's name.
        phase_N=np.array([0.01, 1.99, 0.1, 0.0], np.float32),
    )
    checker.judge(reader)
    assert (checker.frames, checker.judged, checker.mixed, checker.again, checker.unknown) == (4, 3, 2, 0, 0)
    checker.judge(SimpleNamespace(**{**vars(reader), "version_N": np.full(4, 3, np.uint32)}))
    assert (checker.again, checker.unknown) == (4, 4)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.name)
def test_a_kept_result_is_a_full_run_of_its_day_that_lost_nothing(path):
    value = json.loads(path.read_text(encoding="utf-8"))
    date, name = re.fullmatch(r"(\d{4}-\d\d-\d\d)-([a-z]+)(?:-[a-z0-9-]+)?\.json", path.name).groups()
    assert (value["date"], value["benchmark"], value["quick"]) == (date, name, False)
    assert set(value) >= COMMON | PROMISED.get(name, set())
    assert value.get("lost", 0) == value.get("mixed", 0) == 0
    assert value["machine"].keys() >= {"cpu", "cores"}
