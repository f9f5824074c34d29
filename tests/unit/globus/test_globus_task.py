"""What runs at the endpoint: the function by its text, in a worker of its own, and the program that it starts."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer, JSONData

from filmloop import __version__
from filmloop.adapters.globus.compute import versions
from filmloop.adapters.globus.compute.function import run
from filmloop.adapters.globus.compute.wire import TAIL, WORDS, TaskAnswer, TaskRequest
from filmloop.adapters.local.held import hold
from filmloop.core.clock import utc_now
from filmloop.core.documents import ModelChoice, TrainJob
from filmloop.core.retry import wait_until
from filmloop.testing.contracts.launcher import alive, said_pids, starts

# Processes are found by their token, all over the machine: another run of these tests has others.
FIRST, SECOND, THIRD = (secrets.token_hex(16) for _ in range(3))
STANDIN = (sys.executable, "-m", "filmloop.testing.standin_trainer")
WORKER = (
    "import json, sys\n"
    "from globus_compute_sdk.serialize import ComputeSerializer\n"
    "code, request = json.load(sys.stdin)\n"
    "print(json.dumps(ComputeSerializer().deserialize(code)(request)))\n"
)
"""A worker of an endpoint: it knows the text of the function, and that is all."""


def job_of(folder: Path, act: str, *, deadline_s: float = 60.0) -> TrainJob:
    return TrainJob(
        job_id="j1",
        model=ModelChoice(name="stand-in", frame_shape=(16, 128), hyper={"act": act}),
        fresh=(),
        output_dir=str(folder / "j1"),
        deadline_s=deadline_s,
    )


def request_of(job: TrainJob, do: str = "train", *, attempt: int = 1, token: str = FIRST, **more: Any) -> TaskRequest:
    words: dict[str, Any] = {
        "do": do, "patience_s": 120.0, "job": job, "attempt": attempt, "token": token, "command": STANDIN,
        "start_by_s": time.time() + 60, "grace_s": 0.5, "filmloop": __version__, **more,
    }  # fmt: skip
    return TaskRequest(**words)


def worker(request: TaskRequest | dict[str, Any]) -> subprocess.Popen[bytes]:
    """A worker that has been given the function and a request, and works on it."""
    code = ComputeSerializer(AllCodeStrategies(), JSONData()).serialize(run)
    words = request if isinstance(request, dict) else request.as_json()
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps([code, words]).encode())
    process.stdin.close()
    return process


def result_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    with process.stdout:
        value = json.loads(process.stdout.read())
    process.wait()
    assert isinstance(value, dict)
    return value


def ask(request: TaskRequest) -> TaskAnswer:
    result = run(request.as_json())
    assert "answer" in result, result
    return TaskAnswer.model_validate(result["answer"])


def begun(job: TrainJob, processes: int = 1) -> list[int]:
    found = lambda: pids if len(pids := said_pids(job)) >= processes else None  # noqa: E731
    return wait_until(found, deadline_s=60, what="the trainer")


def test_the_function_travels_by_its_text_and_brings_the_verdict_home(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    result = result_of(worker(request_of(job)))
    answer = TaskAnswer.model_validate(result["answer"])
    assert (answer.state, answer.exit_code, answer.progress) == ("succeeded", 0, {"step": 2, "loss": 0.25})
    assert [file.path for file in answer.bundle_files] == ["result.json", "weights.safetensors"]
    assert result["worker"]["globus-compute-sdk"]


def test_a_task_that_comes_again_or_late_starts_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    first = ask(request_of(job, attempt=2, token=SECOND))
    assert ask(request_of(job, attempt=2, token=SECOND)) == first
    assert ask(request_of(job, attempt=1)) == first
    assert ask(request_of(job, attempt=3, token=THIRD)) == first
    assert starts(job) == 1


def test_an_attempt_that_was_lost_is_told_as_lost_and_only_a_newer_one_goes_on(tmp_path: Path) -> None:
    job = job_of(tmp_path, "requeue_once")
    assert ask(request_of(job, attempt=2, token=SECOND)).state == "lost"
    assert ask(request_of(job, attempt=2, token=SECOND)).state == "lost"
    late = ask(request_of(job, attempt=1))
    assert (late.state, "came after attempt 2" in late.detail) == ("lost", True)
    assert starts(job) == 1
    assert ask(request_of(job, attempt=3, token=THIRD)).state == "succeeded"
    assert starts(job) == 2


def test_two_tasks_of_one_job_train_once_and_both_tell_the_end(tmp_path: Path) -> None:
    job = job_of(tmp_path, "wait")
    twins = [worker(request_of(job)), worker(request_of(job)), worker(request_of(job, attempt=2, token=SECOND))]
    begun(job)
    time.sleep(1.0)  # the others are there by now
    Path(job.output_dir, "go").touch()
    answers = [TaskAnswer.model_validate(result_of(twin)["answer"]) for twin in twins]
    assert [answer.state for answer in answers] == ["succeeded"] * 3
    assert starts(job) == 1


def test_a_look_sees_what_waits_runs_and_has_ended(tmp_path: Path) -> None:
    job = job_of(tmp_path, "wait")
    assert ask(request_of(job, "look")).state == "absent"
    process = worker(request_of(job))
    begun(job)
    running = wait_until(
        lambda: found if (found := ask(request_of(job, "look"))).progress else None, deadline_s=30, what="progress"
    )
    assert (running.state, running.progress, running.token) == ("running", {"step": 1, "loss": 0.5}, FIRST)
    assert running.started_utc
    Path(job.output_dir, "go").touch()
    ended = TaskAnswer.model_validate(result_of(process)["answer"])
    assert ask(request_of(job, "look")) == ended


def test_a_killed_worker_leaves_no_process_and_the_job_can_go_on(tmp_path: Path) -> None:
    job = job_of(tmp_path, "wait")
    process = worker(request_of(job))
    pids = begun(job)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    wait_until(lambda: None if alive(pids) else True, deadline_s=20, what="the end of the trainer")
    status = wait_until(
        lambda: found if (found := ask(request_of(job, "look"))).state != "running" else None,
        deadline_s=20, what="the end of the program",
    )  # fmt: skip
    assert (status.state, "told to stop" in status.detail) == ("lost", True)
    Path(job.output_dir, "go").touch()
    assert ask(request_of(job, attempt=2, token=SECOND)).state == "succeeded"


def test_a_killed_program_leaves_no_process(tmp_path: Path) -> None:
    job = job_of(tmp_path, "wait")
    process = worker(request_of(job))
    pids = begun(job)
    os.kill(_program_of(process.pid), signal.SIGKILL)
    result = result_of(process)
    assert (result["exit_code"], "none" in result) == (-9, True)
    wait_until(lambda: None if alive(pids) else True, deadline_s=10, what="the end of the trainer")


def test_the_deadline_ends_every_process(tmp_path: Path) -> None:
    job = job_of(tmp_path, "hang", deadline_s=3.0)
    answer = ask(request_of(job))
    assert (answer.state, "deadline" in answer.detail) == ("failed", True)
    assert alive(said_pids(job)) == []


def test_a_program_that_does_not_answer_is_ended_by_the_function(tmp_path: Path) -> None:
    job = job_of(tmp_path, "hang")
    result = run(request_of(job, patience_s=3.0).as_json())
    assert result["none"] == "no answer within 3 s"
    status = ask(request_of(job, "look"))
    assert (status.state, alive(said_pids(job))) == ("lost", [])


def test_a_cancel_ends_what_runs_and_keeps_away_what_has_not_begun(tmp_path: Path) -> None:
    job = job_of(tmp_path, "hang")
    process = worker(request_of(job))
    pids = begun(job, 2)
    answer = ask(request_of(job, "cancel", why="Enough."))
    assert (answer.state, answer.detail, alive(pids)) == ("failed", "Enough.", [])
    assert TaskAnswer.model_validate(result_of(process)["answer"]).state == "failed"
    other = job_of(tmp_path / "other", "succeed")
    ask(request_of(other, "cancel"))
    assert ask(request_of(other)).state == "failed"
    assert starts(other) == 0


def test_a_task_that_comes_after_its_time_does_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    answer = ask(request_of(job, start_by_s=time.time() - 1))
    assert (answer.state, "withdrawn" in answer.detail, starts(job)) == ("failed", True, 0)


def test_a_task_that_comes_too_late_tells_both_times_by_which_clocks_that_differ_are_seen(tmp_path: Path) -> None:
    answer = ask(request_of(job_of(tmp_path, "succeed"), start_by_s=1.0))
    assert "to begin by 1970-01-01T00:00:01.000Z" in answer.detail
    assert f"came at {utc_now()[:10]}" in answer.detail


def test_a_task_that_waited_for_another_attempt_is_as_late_as_it_came(tmp_path: Path) -> None:
    job = job_of(tmp_path, "requeue_once")
    assert ask(request_of(job)).state == "lost"
    late = ask(request_of(job, attempt=2, token=SECOND, start_by_s=time.time() - 1))
    assert (late.state, "too late" in late.detail, Path(job.output_dir, "cancel").exists()) == ("lost", True, False)
    folder = Path(job.output_dir)
    with hold(folder / "alive"):
        process = worker(request_of(job, attempt=3, token=THIRD, start_by_s=time.time() + 3))
        time.sleep(4.0)
    assert TaskAnswer.model_validate(result_of(process)["answer"]).state == "succeeded"


@pytest.mark.parametrize("left", [(), ("job.json",)])
def test_a_task_of_a_job_that_has_ended_trains_nothing_when_its_run_folder_is_gone(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    job, runs = job_of(tmp_path, "succeed"), tmp_path / ".ended"
    old = runs / "j0.json"
    runs.mkdir()
    old.touch()
    os.utime(old, (0, time.time() - 15 * 86400))
    first = ask(request_of(job))
    assert not old.exists()
    folder = Path(job.output_dir)
    for path in (path for path in folder.iterdir() if path.name not in left):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not left:
        folder.rmdir()
    for request in (
        request_of(job, attempt=2, token=SECOND), request_of(job), request_of(job, "look"), request_of(job, "cancel"),
    ):  # fmt: skip
        if not left or request.do == "train":
            assert ask(request) == first
            assert starts(job) == 0
    assert folder.exists() == bool(left)


def test_a_job_that_was_lost_trains_again_without_its_run_folder(tmp_path: Path) -> None:
    job = job_of(tmp_path, "requeue_once")
    assert ask(request_of(job)).state == "lost"
    shutil.rmtree(job.output_dir)
    assert ask(request_of(job, attempt=2, token=SECOND)).state == "lost"
    assert starts(job) == 1


def test_a_disk_that_refuses_loses_the_attempt_and_does_not_fail_the_job(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    folder = Path(job.output_dir)
    folder.mkdir(parents=True)
    (folder / "run.log").mkdir()  # opening it for writing fails
    answer = ask(request_of(job))
    assert (answer.state, answer.error) == ("lost", "TransientError")


def test_a_look_or_a_cancel_that_the_disk_refuses_says_nothing_about_the_training(tmp_path: Path) -> None:
    job = job_of(tmp_path, "hang")
    training = worker(request_of(job))
    try:
        begun(job)
        alive_file = Path(job.output_dir, "alive")
        alive_file.rename(alive_file.with_name("alive.away"))
        alive_file.mkdir()  # asking for the lock on it fails
        for do in ("look", "cancel"):
            result = run(request_of(job, do).as_json())
            assert "answer" not in result, result
            assert f"could not {do}" in result["said"]
        alive_file.rmdir()
        alive_file.with_name("alive.away").rename(alive_file)
        assert ask(request_of(job, "look")).state == "running"
    finally:
        ask(request_of(job, "cancel"))
        result_of(training)


def test_a_folder_of_another_job_is_left_alone(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    ask(request_of(job))
    other = job.model_copy(update={"job_id": "j2"})
    answer = ask(request_of(other))
    assert (answer.state, answer.error) == ("failed", "DataError")


def test_another_filmloop_over_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = job_of(tmp_path, "succeed")
    answer = ask(request_of(job, filmloop="9.9.0"))
    assert (answer.state, answer.error, starts(job)) == ("failed", "ConfigError", 0)
    assert "filmloop[hpc]==9.9.0" in answer.hint


def test_what_comes_home_is_small_whatever_the_trainer_says(tmp_path: Path) -> None:
    script = tmp_path / "loud.py"
    script.write_text(
        "import json, sys, pathlib\n"
        "folder = pathlib.Path(sys.argv[1]).parent\n"
        "print('x' * 20_000_000)\n"
        "error = {'error': 'TrainingError', 'message': 'm' * 20_000_000, 'hint': 'h' * 20_000_000, 'exit_code': 6, "
        "'retryable': False}\n"
        "(folder / 'error.json').write_text(json.dumps(error))\n"
        "sys.exit(6)\n"
    )
    result = run(request_of(job_of(tmp_path, "succeed"), command=(sys.executable, str(script))).as_json())
    assert len(json.dumps(result)) < 2 * WORDS + TAIL + 5000
    assert (result["answer"]["state"], result["answer"]["error"]) == ("failed", "TrainingError")


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_an_interpreter_that_cannot_be_used_is_said_to_be_none(tmp_path: Path, python: str) -> None:
    result = run(request_of(job_of(tmp_path, "succeed"), python=python).as_json())
    assert result["exit_code"] > 0
    assert "none" in result


def test_the_versions_of_an_interpreter_are_told_without_filmloops_help() -> None:
    result = run({"do": "versions", "probe": versions.PROBE, "python": sys.executable, "patience_s": 60.0})
    assert result["answer"]["filmloop"] == __version__
    assert versions.compare(versions.here(), result["worker"], result["answer"]) == versions.Comparison()


def test_several_nodes_need_an_engine_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARSL_MPI_PREFIX", raising=False)
    answer = ask(request_of(job_of(tmp_path, "succeed"), nodes=2))
    assert (answer.state, answer.error) == ("failed", "ConfigError")
    assert "GlobusMPIEngine" in answer.hint


def test_the_prefix_of_the_engine_for_mpi_starts_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PARSL_MPI_PREFIX", f"{sys.executable} -c 'import os, sys; os.execvp(sys.argv[1], sys.argv[1:])'"
    )
    assert ask(request_of(job_of(tmp_path, "succeed"), nodes=2)).state == "succeeded"


def test_the_function_runs_in_a_thread_of_its_worker_too(tmp_path: Path) -> None:
    answers: list[TaskAnswer] = []
    thread = threading.Thread(target=lambda: answers.append(ask(request_of(job_of(tmp_path, "succeed")))))
    thread.start()
    thread.join(60)
    assert [answer.state for answer in answers] == ["succeeded"]


def _program_of(worker_pid: int) -> int:
    children = Path(f"/proc/{worker_pid}/task/{worker_pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def test_a_batch_job_that_is_nearly_over_begins_nothing_and_the_attempt_goes_on_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, "succeed")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time()) + 90))
    answer = ask(request_of(job, save_before_s=60.0))
    assert (answer.state, "ends too soon" in answer.detail, starts(job)) == ("waiting", True, 0)
    assert ask(request_of(job, save_before_s=60.0, walltime_s=100.0)).state == "succeeded"


@pytest.mark.parametrize("told_by", ["slurm", "the site"])
def test_a_batch_job_that_ends_before_the_deadline_has_the_trainer_save_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    words: dict[str, Any] = {"save_before_s": 5.0}
    if told_by == "slurm":
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time()) + 13))
    else:
        monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
        words["walltime_s"] = 7.0
    answer = ask(request_of(job_of(tmp_path, "wait"), **words))
    assert (answer.state, "told to stop" in answer.detail) == ("lost", True)
