"""Training on a GPU, by the program that a cluster runs: bfloat16, streaming, compiling, a kill, and the CPU's answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from filmloop.bundle import load_golden, verify_bundle
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.load import load_module


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(6000))


def start(job, **environ):
    folder = Path(job.output_dir)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    with (folder / "run.log").open("a") as log:
        return subprocess.Popen(
            [*torchrun, "-m", "filmloop.training.entry", str(folder / "job.json")],
            env={**os.environ, **environ},
            stdout=log,
            stderr=log,
        )


def trained(job, **environ):
    code = start(job, **environ).wait(timeout=250)
    folder = Path(job.output_dir)
    assert code == 0, (folder / "run.log").read_text()[-3000:]
    result = verify_bundle(folder / "bundle")
    counts_NCE, golden_NCE = load_golden(folder / "bundle")
    with torch.no_grad():
        rate_NCE = load_module(folder / "bundle")(torch.from_numpy(counts_NCE).float()).numpy()
    # What was trained on the GPU serves on a CPU as it did there.
    np.testing.assert_allclose(rate_NCE, golden_NCE, rtol=2e-2, atol=2e-3)
    return result, load_file(folder / "bundle" / "weights.safetensors")


def apart(a, b):
    a, b = (np.concatenate([each[name].ravel() for name in sorted(each)]) for each in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_gpu_and_the_cpu_train_alike_in_float32(tmp_path, shard):
    results = [
        trained(small_job(tmp_path / name, shard, hyper={"precision": "float32"}), **environ)
        for name, environ in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""}))
    ]
    assert "cpu" not in results[0][0].device
    assert results[1][0].device == "cpu"
    assert apart(results[0][1], results[1][1]) < 1e-3


def test_bfloat16_and_streaming_reach_about_the_same_score(tmp_path, shard):
    changes = {"float32": {"precision": "float32"}, "bfloat16": {}, "streamed": {"loader_mb": 4.0}}
    scores = {}
    for name, hyper in changes.items():
        result, _ = trained(small_job(tmp_path / name, shard, hyper={"max_steps": 200, **hyper}))
        scores[name] = result.metrics["nll"]
    print(scores)
    assert max(scores.values()) - min(scores.values()) < 0.01 * abs(scores["float32"])


def test_a_compiled_network_trains_like_one_that_is_not(tmp_path, shard):
    scores = [
        trained(small_job(tmp_path / str(compiled), shard, hyper={"max_steps": 200, "compile": compiled}))[0].metrics[
            "nll"
        ]
        for compiled in (False, True)
    ]
    print(scores)
    assert abs(scores[0] - scores[1]) < 0.01 * abs(scores[0])


def test_a_killed_job_goes_on_from_its_checkpoint(tmp_path, shard):
    hyper = {"max_steps": 3000, "evaluate_every_steps": 100, "patience_evaluations": 1000, "checkpoint_every_s": 0.2}
    job = small_job(tmp_path / "job", shard, hyper=hyper)
    process, metrics = start(job), tmp_path / "job" / "metrics.jsonl"
    end_s = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 40:
        assert process.poll() is None, (tmp_path / "job" / "run.log").read_text()[-2000:]
        assert time.monotonic() < end_s
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, children), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(10)
    time.sleep(1)
    result, _ = trained(job)
    assert (result.status, result.resumed_from_step > 0) == ("completed", True)
