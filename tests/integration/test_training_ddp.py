from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from filmloop.bundle import verify_bundle
from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.fsio import try_lock
from filmloop.testing.training import simulated_counts, small_job, staged_frames


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardRef:
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(600))


def _start(job: TrainJob, ranks: int) -> subprocess.Popen[str]:
    """The job under torchrun, in a process group of its own, one thread a rank."""
    folder = Path(job.output_dir)
    folder.mkdir(exist_ok=True)
    job.write(folder / "job.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with (folder / "run.log").open("a") as log:
        return subprocess.Popen(
            [*torchrun, "-m", "filmloop.training.entry", str(folder / "job.json")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            text=True,
        )


def _finish(job: TrainJob, ranks: int) -> None:
    code = _start(job, ranks).wait(timeout=250)
    assert code == 0, (Path(job.output_dir) / "run.log").read_text()[-3000:]


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < end, "waited for 100 s"
        time.sleep(0.02)


def _step(folder: Path) -> int:
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def _is_free(folder: Path) -> bool:
    """Rank 0 holds this lock as long as it lives."""
    with try_lock(folder / ".lock") as free:
        return free


def test_one_rank_and_two_agree(tmp_path: Path, shard: ShardRef) -> None:
    # Equal batches and draws: only the order of summation differs, 1e-8 of the weights after 40 steps.
    # Other batches would differ by a tenth.
    weights = []
    for ranks in (1, 2):
        job = small_job(tmp_path / f"ranks{ranks}", shard)
        _finish(job, ranks)
        assert verify_bundle(tmp_path / f"ranks{ranks}" / "bundle").world_size == ranks
        arrays = load_file(tmp_path / f"ranks{ranks}" / "bundle" / "weights.safetensors")
        weights.append(np.concatenate([arrays[name].ravel() for name in sorted(arrays)]))
    one, two = weights
    assert np.linalg.norm(one - two) < 1e-5 * np.linalg.norm(one)


def test_a_job_killed_and_then_terminated_ends_with_a_whole_bundle(tmp_path: Path, shard: ShardRef) -> None:
    folder = tmp_path / "run"
    hyper = {"max_steps": 600, "checkpoint_every_s": 0.2, "patience_evaluations": 1000, "max_epochs": 1000}
    job = small_job(folder, shard, hyper=hyper)

    killed = _start(job, 2)
    _wait(lambda: (folder / "checkpoint.pt").exists() and _step(folder) >= 50, killed)
    killed.kill()
    killed.wait()
    end = time.monotonic() + 10
    while not _is_free(folder):  # no rank outlives its torchrun
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not (folder / "bundle").exists()
    at_kill = _step(folder)

    terminated = _start(job, 2)
    _wait(lambda: _step(folder) >= at_kill + 50, terminated)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait(timeout=60) != 0
    error = json.loads((folder / "error.json").read_text())
    assert (error["error"], error["exit_code"], error["retryable"]) == ("TerminatedError", 75, True)
    assert not (folder / "bundle").exists()

    _finish(job, 2)
    result = verify_bundle(folder / "bundle")
    assert result.resumed_from_step >= at_kill + 50 - 10  # written at SIGTERM; the ranks agree every ten steps
    assert result.steps == 600
    assert not (folder / "error.json").exists()
    lines = [json.loads(line) for line in (folder / "bundle" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(10, 601, 10))


def test_a_failing_rank_leaves_its_error(tmp_path: Path) -> None:
    empty = staged_frames(tmp_path, np.zeros((300, 16, 128), np.uint8))
    assert _start(small_job(tmp_path / "run", empty), 2).wait(timeout=100) != 0
    assert json.loads((tmp_path / "run" / "error.json").read_text())["exit_code"] == 6
