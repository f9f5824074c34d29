from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from filmloop.core.documents import FileDigest, ModelChoice, TrainJob
from filmloop.core.errors import (
    ConfigError,
    DataError,
    FilmloopError,
    TrainingError,
    TransientError,
    VerificationError,
)
from filmloop.launching import launch
from filmloop.ports.launcher import LaunchStatus

FILES = (FileDigest(path="result.json", size_bytes=2, sha256="0" * 64),)
DONE = LaunchStatus(state="succeeded", exit_code=0, bundle_files=FILES)
RUNNING = LaunchStatus(state="running", progress={"step": 10, "loss": 0.5})


class Scripted:
    """A launcher that tells one status after the other; the last one for ever."""

    def __init__(self, *statuses: LaunchStatus) -> None:
        self.statuses = list(statuses)
        self.submitted: list[str] = []
        self.cancelled: list[str] = []

    def submit(self, job: TrainJob) -> str:
        self.submitted.append(job.job_id)
        return f"handle {len(self.submitted)}"

    def poll(self, handle: str) -> LaunchStatus:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)


def ended(state: Literal["failed", "lost"], error: str = "") -> LaunchStatus:
    return LaunchStatus(
        state=state,
        exit_code=1,
        detail="Shard 7 is damaged.",
        error=error,
        hint="Run the doctor." if error else "",
        log_tail="last line of the log",
    )


def run(launcher: Scripted, handles: list[str] | None = None, told: list[str] | None = None) -> tuple[FileDigest, ...]:
    job = TrainJob(job_id="j1", model=ModelChoice(name="mixer", frame_shape=(16, 128)), fresh=(), output_dir="/runs/j1")
    keep, tell = (handles if handles is not None else []).append, (told if told is not None else []).append
    return launch(launcher, job, poll_s=0.0, keep_handle=keep, tell=tell)


def test_the_files_of_the_bundle_come_back_and_progress_is_told_once() -> None:
    handles, told = [], []
    assert run(Scripted(RUNNING, RUNNING, DONE), handles, told) == FILES
    assert handles == ["handle 1"]
    assert told == ["step 10  loss 0.5"]


def test_progress_begins_with_what_says_how_far_it_is() -> None:
    numbers = {
        "step": 1120, "loss": 0.605389, "frames_per_s": 5647.97, "learning_rate": 0.00584344,
        "loader_idle_share": 0.00999, "elapsed_s": 66.75, "own": 3.0,
    }  # fmt: skip
    told: list[str] = []
    run(Scripted(LaunchStatus(state="running", progress=numbers), DONE), told=told)
    assert told == ["step 1,120  67 s  loss 0.60539  5,648 frames/s  learning rate 0.00584  idle share 0.00999  own 3"]


@pytest.mark.parametrize("error", ["", "TransientError", "TerminatedError"])
def test_a_lost_job_is_submitted_again(error: str) -> None:
    launcher = Scripted(ended("lost", error), RUNNING, ended("lost", error), DONE)
    assert run(launcher) == FILES
    assert launcher.submitted == ["j1"] * 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("DataError", DataError),
        ("VerificationError", VerificationError),
        ("ConfigError", ConfigError),
        ("TransientError", TransientError),
        ("TrainingError", TrainingError),
        ("FilmloopError", TrainingError),  # a bug of the trainer is not one of the cycle
        ("ZeroDivisionError", TrainingError),
        ("", TrainingError),
    ],
)
def test_the_trainers_error_keeps_its_class(error: str, kind: type[FilmloopError]) -> None:
    launcher = Scripted(ended("failed", error))
    with pytest.raises(kind) as caught:
        run(launcher)
    assert type(caught.value) is kind
    assert launcher.submitted == ["j1"], "a failure is final"


def test_the_trainers_message_and_hint_come_first_the_log_after() -> None:
    with pytest.raises(DataError) as caught:
        run(Scripted(ended("failed", "DataError")))
    assert caught.value.message == "Training failed: Shard 7 is damaged.\nlast line of the log"
    assert caught.value.hint == "Run the doctor. The whole log is /runs/j1/run.log. The champion stays as it is."
    assert caught.value.ids == {"job_id": "j1"}
    with pytest.raises(TrainingError) as caught_without:
        run(Scripted(ended("failed")))
    assert caught_without.value.hint == "The whole log is /runs/j1/run.log. The champion stays as it is."


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("TransientError", TransientError),
        ("TerminatedError", TransientError),  # its own exit code, 75, would say that somebody stopped the cycle
        ("", TrainingError),
    ],
)
def test_a_job_that_is_lost_every_time_ends_after_four_attempts(error: str, kind: type[FilmloopError]) -> None:
    launcher = Scripted(ended("lost", error))
    with pytest.raises(kind, match="Training lost: Shard 7 is damaged") as caught:
        run(launcher)
    assert type(caught.value) is kind
    assert len(launcher.submitted) == 4


def test_a_launcher_that_never_ends_the_job_is_told_to_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmloop.launching._GRACE_S", -900.0)  # the job's own deadline: passed at once
    launcher = Scripted(RUNNING)
    with pytest.raises(TrainingError, match="deadline"):
        run(launcher)
    assert launcher.cancelled == ["handle 1"]


def test_every_attempt_has_the_deadline_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [0.0]
    monkeypatch.setattr("filmloop.launching.time.monotonic", lambda: clock_s[0])
    monkeypatch.setattr("filmloop.launching.time.sleep", lambda _s: clock_s.__setitem__(0, clock_s[0] + 700.0))
    launcher = Scripted(RUNNING, ended("lost"), RUNNING, ended("lost"), RUNNING, DONE)
    assert run(launcher) == FILES
    assert launcher.cancelled == []


def test_a_job_that_is_told_to_stop_counts_as_lost_only_if_it_did_not_get_on() -> None:
    told = [replace(ended("lost", "TerminatedError"), progress={"step": 10.0 * n}) for n in (*range(8), 7, 7, 7)]
    launcher = Scripted(*told, DONE)
    assert run(launcher) == FILES
    assert len(launcher.submitted) == 12
    launcher = Scripted(*told, told[-1], DONE)
    with pytest.raises(TransientError):
        run(launcher)
    crashed = [replace(ended("lost"), progress={"step": 10.0 * n}) for n in range(4)]
    launcher = Scripted(*crashed, DONE)
    with pytest.raises(TrainingError):
        run(launcher)


def test_time_in_a_queue_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [0.0]
    monkeypatch.setattr("filmloop.launching.time.monotonic", lambda: clock_s[0])
    monkeypatch.setattr("filmloop.launching.time.sleep", lambda _s: clock_s.__setitem__(0, clock_s[0] + 100.0))
    waits = LaunchStatus(state="pending", detail="Slurm job 7 waits: PENDING Priority")
    told: list[str] = []
    assert run(Scripted(*[waits] * 50, RUNNING, RUNNING, DONE), told=told) == FILES
    assert told == [waits.detail, "step 10  loss 0.5"]
    assert clock_s[0] > 5000, "five times the deadline and more"
