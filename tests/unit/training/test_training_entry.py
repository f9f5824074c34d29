from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from filmloop.bundle import load_evaluation, load_golden, verify_bundle
from filmloop.core.documents import ShardRef, TrainJob, TrainResult, WeightsRef
from filmloop.core.fsio import try_lock
from filmloop.testing.models import make_model_bundle
from filmloop.testing.training import small_job, staged_frames
from filmloop.training.data import load_data
from filmloop.training.entry import StopFlag, main
from filmloop.training.evaluate import evaluate, evaluate_challenger, rate_function
from filmloop.training.load import load_module


def _run(job: TrainJob) -> int:
    path = Path(job.output_dir) / "job.json"
    job.write(path)
    return main([str(path)])


def _error(folder: Path) -> dict:
    return json.loads((folder / "error.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shard: ShardRef) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert _run(small_job(folder, shard)) == 0
    return folder


def test_the_bundle_is_whole_and_says_where_it_comes_from(finished: Path, shard: ShardRef) -> None:
    result = verify_bundle(finished / "bundle")
    assert result.status == "completed"
    assert result.lineage == {shard.shard_id: shard.manifest_digest}
    assert result.frames_trained + result.frames_held_out == 600
    assert result.steps == 40
    assert result.loss_last < result.loss_first
    assert {"python", "torch", "numpy", "zarr", "filmloop"} <= set(result.versions)
    assert {file.path for file in result.files} >= {
        "model.onnx",
        "plots/training.png",
        "plots/frame.png",
        "plots/scores.png",
    }
    assert not (finished / "error.json").exists()
    assert not (finished / "bundle.part").exists()


def test_the_metrics_of_the_result_are_those_of_the_reports(finished: Path) -> None:
    result, reports = verify_bundle(finished / "bundle"), load_evaluation(finished / "bundle").reports
    assert result.metrics["nll"] == reports["challenger"].nll
    assert result.metrics["nll_gaussian"] == reports["gaussian"].nll
    assert set(reports) == {"challenger", "gaussian", "zero"}


def test_the_golden_pair_is_what_the_shipped_weights_give(finished: Path) -> None:
    counts, rate = load_golden(finished / "bundle")
    assert len(counts) == 16
    np.testing.assert_allclose(
        rate_function(load_module(finished / "bundle"))(counts.astype(np.float32)), rate, rtol=1e-5
    )


def test_a_finished_job_is_left_alone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main([str(finished / "job.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_damaged_bundle_is_made_again(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard, hyper={"max_steps": 10})
    assert _run(job) == 0
    (folder / "bundle" / "weights.safetensors").write_bytes(b"")
    assert _run(job) == 0
    assert verify_bundle(folder / "bundle").job_id == job.job_id


def test_a_warm_start_begins_at_the_base(folder: Path, finished: Path, shard: ShardRef) -> None:
    base = WeightsRef(
        version="1",
        bundle_path=str(finished / "bundle"),
        weights_sha256=TrainResult.read(finished / "bundle" / "result.json").weights_sha256,
    )
    assert _run(small_job(folder, shard, base=base, champion=base, job_id="job-2")) == 0
    result, reports = verify_bundle(folder / "bundle"), load_evaluation(folder / "bundle").reports
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert first["nll"] == pytest.approx(reports["champion"].nll, rel=1e-5)
    assert reports["challenger"].nll < reports["champion"].nll
    assert result.base_version == "1"


def test_reports_are_those_of_the_shipped_weights_although_the_loop_has_scored_them(
    folder: Path, finished: Path, shard: ShardRef
) -> None:
    base = WeightsRef(
        version="1",
        bundle_path=str(finished / "bundle"),
        weights_sha256=TrainResult.read(finished / "bundle" / "result.json").weights_sha256,
    )
    job = small_job(folder, shard, base=base, champion=base, job_id="job-3")
    assert _run(job) == 0
    reports, holdout = load_evaluation(folder / "bundle").reports, load_data(job).holdout
    for name, bundle in (("challenger", folder / "bundle"), ("champion", finished / "bundle")):
        again = evaluate(rate_function(load_module(bundle)), holdout, name)
        assert reports[name].frames_digest == again.frames_digest
        np.testing.assert_allclose(reports[name].nll_frames, again.nll_frames, rtol=1e-4)


def test_weights_that_do_not_score_as_the_loop_found_are_scored_anew(
    finished: Path, shard: ShardRef, caplog: pytest.LogCaptureFixture
) -> None:
    holdout = load_data(TrainJob.read(finished / "job.json")).holdout
    module = load_module(finished / "bundle")
    right = evaluate(rate_function(module), holdout, "challenger")
    known_N = torch.tensor(right.nll_frames, dtype=torch.float64)
    assert evaluate_challenger(module, holdout, known_N)["challenger"] == right
    assert not caplog.records
    wrong = evaluate_challenger(module, holdout, known_N + 1.0)["challenger"]
    assert wrong.nll == pytest.approx(right.nll, rel=1e-6)
    assert "scored again" in caplog.text


def test_bad_data_leave_an_error_and_its_exit_code(folder: Path, tmp_path: Path, shard: ShardRef) -> None:
    assert (
        _run(small_job(folder, shard.model_copy(update={"manifest_path": str(tmp_path / "gone.manifest.json")}))) == 5
    )
    error = _error(folder)
    assert error["exit_code"] == 5
    assert error["hint"]
    assert not (folder / "bundle").exists()


def test_empty_frames_are_a_training_error(folder: Path, tmp_path: Path) -> None:
    assert _run(small_job(folder, staged_frames(tmp_path, np.zeros((300, 16, 128), np.uint8)))) == 6
    assert _error(folder)["error"] == "TrainingError"


def test_a_base_of_another_model_is_a_training_error(folder: Path, tmp_path: Path, shard: ShardRef) -> None:
    bundle = make_model_bundle(tmp_path / "base", hyper={"features": 8})
    base = WeightsRef(
        version="2",
        bundle_path=str(bundle),
        weights_sha256=TrainResult.read(bundle / "result.json").weights_sha256,
    )
    assert _run(small_job(folder, shard, base=base)) == 6
    assert "warm_start" in _error(folder)["hint"]


def test_an_unknown_model_is_a_config_error(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    assert _run(job.model_copy(update={"model": job.model.model_copy(update={"name": "mixr"})})) == 2


def test_the_largest_seeds_that_a_site_may_name_are_taken(folder: Path, shard: ShardRef) -> None:
    largest = 10**18
    assert _run(small_job(folder, shard, seed=largest, hyper={"max_steps": 3}, holdout={"seed": largest})) == 0


def test_what_nobody_foresaw_is_told_too(folder: Path, shard: ShardRef, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_args: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("filmloop.training.data.load_data", break_down)
    assert _run(small_job(folder, shard)) == 70
    assert "ZeroDivisionError" in _error(folder)["message"]


def _run_in_a_process(job: TrainJob, *, address_space_bytes: int | None = None, **environ: str) -> int:
    path = Path(job.output_dir) / "job.json"
    job.write(path)

    def limit() -> None:
        if address_space_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))

    argv = [sys.executable, "-m", "filmloop.training.entry", str(path)]
    return subprocess.run(
        argv, env={**os.environ, "OMP_NUM_THREADS": "1", **environ}, preexec_fn=limit, capture_output=True, timeout=200
    ).returncode


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA takes more addresses than any limit that a batch passes")
def test_a_batch_that_memory_does_not_hold_is_told_with_what_to_lower(folder: Path, shard: ShardRef) -> None:
    # 200,000 frames of 2048 bytes, and those again as float32: more than it may have beside what this process has.
    here_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    job = small_job(folder, shard, hyper={"batch_frames": 200_000})
    assert _run_in_a_process(job, address_space_bytes=here_bytes + 1_000_000_000) == 6
    error = _error(folder)
    assert "not enough memory" in error["message"]
    assert "batch_frames" in error["hint"]


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_names_the_key(folder: Path, tmp_path: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard, hyper={"max_steps": 3, "compile": True})
    assert _run_in_a_process(job, CXX="/nowhere/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) == 2
    error = _error(folder)
    assert "compiler" in error["message"]
    assert "training.hyper.compile" in error["hint"]


def test_the_error_of_an_earlier_try_is_cleared(folder: Path, shard: ShardRef) -> None:
    (folder / "error.json").write_text("{}")
    assert _run(small_job(folder, shard, hyper={"max_steps": 5})) == 0
    assert not (folder / "error.json").exists()


def test_a_job_that_runs_already_is_not_disturbed(folder: Path, shard: ShardRef) -> None:
    with try_lock(folder / ".lock"):
        assert _run(small_job(folder, shard)) == 3
    assert not (folder / "error.json").exists()
    assert not (folder / "metrics.jsonl").exists()


def test_a_job_file_that_is_none_is_a_data_error(folder: Path) -> None:
    (folder / "job.json").write_text("{}")
    assert main([str(folder / "job.json")]) == 5
    assert main([str(folder / "absent.json")]) == 5
    assert main([]) == 2


def test_sigterm_sets_the_flag_as_often_as_it_comes() -> None:
    flag = StopFlag()
    assert not flag()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag()
