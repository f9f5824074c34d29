from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.mark import marked_processes
from filmloop.adapters.local.runfolder import Launch
from filmloop.bundle import verify_bundle
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.core.documents import ShardRef, TrainJob, TrainResult, WeightsRef
from filmloop.core.errors import VerificationError
from filmloop.core.retry import wait_until
from filmloop.launching import launch
from filmloop.testing.models import make_model_bundle
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


def _step(folder: Path) -> int:
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


@pytest.mark.slow
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


def _ranks(job: TrainJob) -> dict[int, int]:
    """Rank -> process id of the ranks of the job that live."""
    found = {}
    for pid in marked_processes(Launch.read(Path(job.output_dir)).token):
        with suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(entry[5:]): pid for entry in environ if entry.startswith(b"RANK=")}
    return found


# Of two, one lives to tell that it lost the other; one alone, with nobody to speak for it, needs the exit code.
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "victim"), [(2, 0), (1, 0)])
def test_a_rank_that_is_killed_costs_the_steps_since_its_checkpoint(
    tmp_path: Path, shard: ShardRef, ranks: int, victim: int
) -> None:
    folder = tmp_path / "run"
    hyper = {"max_steps": 400, "checkpoint_every_s": 0.2, "patience_evaluations": 1000, "max_epochs": 1000}
    job, launcher = small_job(folder, shard, hyper=hyper), LocalLauncher(section=LauncherSection(processes=ranks))
    handles: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(launch, launcher, job, poll_s=0.05, keep_handle=handles.append, tell=lambda _text: None)
        wait_until(
            lambda: (any(folder.glob("checkpoints/*/SHA256SUMS")) and _step(folder) >= 50) or None,
            deadline_s=100,
            what="step 50",
            first_s=0.02,
            cap_s=0.02,
        )
        os.kill(_ranks(job)[victim], signal.SIGKILL)
        files = training.result(timeout=200)
    assert len(handles) == 2, "it was lost once and submitted again"
    result = verify_bundle(folder / "bundle")
    assert {file.path for file in files} == {"result.json", *(file.path for file in result.files)}
    assert result.resumed_from_step > 0
    assert (result.steps, result.world_size) == (400, ranks)


def test_the_cause_is_told_not_what_the_other_rank_saw_of_it(tmp_path: Path, shard: ShardRef) -> None:
    # Only the last rank evaluates and meets the damage; its end is all that the first one sees.
    bundle = make_model_bundle(tmp_path / "champion")
    champion = WeightsRef(
        version="1", bundle_path=str(bundle), weights_sha256=TrainResult.read(bundle / "result.json").weights_sha256
    )
    (bundle / "weights.safetensors").write_bytes(b"")
    job = small_job(tmp_path / "run", shard, champion=champion, hyper={"max_steps": 10})
    launcher = LocalLauncher(section=LauncherSection(processes=2))
    with pytest.raises(VerificationError, match="weights") as caught:
        launch(launcher, job, poll_s=0.05, keep_handle=lambda _handle: None, tell=lambda _text: None)
    assert "run.log" in caught.value.hint
    assert "lost each other" in (tmp_path / "run" / "run.log").read_text(), "the first rank did see something"


def test_a_failing_rank_leaves_its_error(tmp_path: Path) -> None:
    empty = staged_frames(tmp_path, np.zeros((300, 16, 128), np.uint8))
    assert _start(small_job(tmp_path / "run", empty), 2).wait(timeout=100) != 0
    assert json.loads((tmp_path / "run" / "error.json").read_text())["exit_code"] == 6


def test_more_ranks_than_frames_of_a_batch_are_refused_in_words(tmp_path: Path, shard: ShardRef) -> None:
    assert _start(small_job(tmp_path / "run", shard, hyper={"batch_frames": 1}), 2).wait(timeout=100) != 0
    error = json.loads((tmp_path / "run" / "error.json").read_text())
    assert (error["error"], error["exit_code"]) == ("ConfigError", 2)
    assert error["message"] == "training.hyper.batch_frames = 1 is below the number of ranks, 2."
    assert "[launcher]" in error["hint"]
