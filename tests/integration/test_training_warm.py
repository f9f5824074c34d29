"""Real ranks, forked from a process that has torch loaded, by the function that any worker may call."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from filmloop.bundle import verify_bundle
from filmloop.core.documents import ShardRef
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training import warm

pytestmark = pytest.mark.timeout(600)

# As a function service would: loads once, then runs jobs. Prints what came of them.
SCRIPT = """
import json, sys
from filmloop.core.documents import TrainJob
from filmloop.core.forking import threads_here
from filmloop.training import warm
jobs = [TrainJob.model_validate_json(text) for text in sys.argv[1:]]
warm.load()
reasons = [warm.why_not()]
codes = [warm.run_job(job, ranks=2) for job in (*jobs, jobs[0])]
print(json.dumps({"codes": codes, "reasons": [*reasons, warm.why_not()]}))
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardRef:
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(600))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_forked_ranks_make_the_weights_that_torchrun_makes_and_a_bad_job_harms_no_other(
    tmp_path: Path, shard: ShardRef
) -> None:
    good = small_job(tmp_path / "warm", shard)
    bad = small_job(tmp_path / "bad", shard.model_copy(update={"manifest_digest": "0" * 64}))
    argv = [sys.executable, "-c", SCRIPT, good.model_dump_json(), bad.model_dump_json()]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["codes"] == [0, 5, 0], (tmp_path / "bad/run.log").read_text()
    assert said["reasons"] == ["", ""], "no job leaves a thread behind"
    assert json.loads((tmp_path / "bad/error.json").read_text())["error"] == "VerificationError"
    result = verify_bundle(tmp_path / "warm/bundle")
    assert result.world_size == 2

    cold = small_job(tmp_path / "cold", shard)
    cold.write(tmp_path / "cold/job.json")
    torchrun = ["-m", "filmloop.training.torchrun", "--standalone", "--nproc-per-node=2", "-m", warm.ENTRY]
    subprocess.run([sys.executable, *torchrun, str(tmp_path / "cold/job.json")], capture_output=True, check=True)
    weights = [load_file(tmp_path / name / "bundle/weights.safetensors") for name in ("warm", "cold")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_a_rank_imports_next_to_nothing_that_load_has_not(tmp_path: Path, shard: ShardRef) -> None:
    job = small_job(tmp_path / "run", shard)
    code = """
import json, sys
from filmloop.core.documents import TrainJob
from filmloop.training import warm
job = TrainJob.model_validate_json(sys.argv[1])
warm.load()
before = set(sys.modules)
from filmloop.training import entry
from pathlib import Path
Path(job.output_dir).mkdir()
job.write(Path(job.output_dir, "job.json"))
assert entry.main([str(Path(job.output_dir, "job.json"))]) == 0
print(json.dumps(sorted(name.split(".")[0] for name in set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, job.model_dump_json()], capture_output=True, text=True, check=True
    )
    late = json.loads(done.stdout)
    heavy = {"torch", "sympy", "onnx", "matplotlib", "zarr", "numpy", "filmloop_models"}
    assert len([name for name in late if name in heavy]) < 20, late  # 900 without `load`


def test_a_process_with_threads_says_that_it_must_not_fork() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert "threads" in warm.why_not()
    finally:
        done.set()
        other.join()
