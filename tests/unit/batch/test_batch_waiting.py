"""How long the launcher waits: for the files of a job that has ended, and for a batch system that does not answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from filmloop.adapters.batch.attempt import Attempt, Started
from filmloop.adapters.batch.dialect import Look
from filmloop.adapters.batch.launcher import BatchLauncher
from filmloop.adapters.local.held import hold
from filmloop.adapters.local.runfolder import Exit
from filmloop.adapters.slurm.dialect import SlurmDialect
from filmloop.adapters.slurm.dialect import look_of as slurm_look
from filmloop.config.launchers import SlurmLauncher as Section
from filmloop.core.clock import utc_now, utc_text
from filmloop.core.documents import ModelChoice, TrainJob
from filmloop.core.errors import TransientError
from filmloop.core.fsio import atomic_write_json

COMPLETED, FAILED, GONE = slurm_look("COMPLETED", ""), slurm_look("FAILED", ""), Look(phase="gone")
PENDING, RUNNING = slurm_look("PENDING", "Priority"), slurm_look("RUNNING", "")
AWAY = TransientError("squeue: Unable to contact slurm controller", hint="Slurm is away; try again.")


class Queue(SlurmDialect):
    """A Slurm that sees its one job as it is told, or is away."""

    def __init__(self) -> None:
        super().__init__(Section())
        self.sees: Look | TransientError = PENDING
        self.submitted = 0
        self.cancelled: list[str] = []
        self.refuses_to_cancel = False

    def submit(self, script: Path, *, lock: int) -> str:
        self.submitted += 1
        return str(self.submitted)

    def look(self, batch_id: str) -> Look:
        if isinstance(self.sees, TransientError):
            raise self.sees
        return self.sees

    def find(self, attempt: Attempt) -> str | None:
        if isinstance(self.sees, TransientError):
            raise self.sees
        return None

    def cancel(self, batch_id: str) -> None:
        if self.refuses_to_cancel:
            raise AWAY
        self.cancelled.append(batch_id)

    def across_nodes(self, command: Sequence[str]) -> tuple[str, ...]:
        return tuple(command)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    folder = tmp_path / "run"
    return TrainJob(
        job_id="j1", model=ModelChoice(name="mixer", frame_shape=(16, 128)), fresh=(), output_dir=str(folder)
    )


@pytest.fixture
def make(queue: Queue) -> Callable[..., BatchLauncher]:
    def build(**section: float) -> BatchLauncher:
        section = {"poll_s": 1e-6, **section}
        return BatchLauncher(section=Section(**section), dialect=queue, command=("true",))  # type: ignore[arg-type]

    return build


def begin(folder: Path) -> None:
    attempt = Attempt.read(folder)
    assert attempt is not None
    Started(token=attempt.token, batch_id=attempt.batch_id, host="n1", started_utc=utc_now()).write(folder)


def succeed(folder: Path) -> None:
    (folder / "bundle").mkdir()
    atomic_write_json(folder / "bundle/result.json", {})
    Exit(exit_code=0, reason="ended", wall_s=1.0, ended_utc=utc_now()).write(folder)


def age(folder: Path, seconds: float, *, file: str = "batch.json", key: str = "submitted_utc") -> None:
    """As if this record were older."""
    value = json.loads((folder / file).read_text())
    atomic_write_json(folder / file, {**value, key: utc_text(time.time() - seconds)})


@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize("look", [COMPLETED, FAILED, GONE, slurm_look("TIMEOUT", ""), slurm_look("NODE_FAIL", "")])
def test_a_job_that_ended_runs_on_until_its_files_show(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher], look: Look, began: bool
) -> None:
    launcher, folder = make(), Path(job.output_dir)
    handle = launcher.submit(job)
    if began:
        begin(folder)
    queue.sees = look
    for _ in range(3):
        status = launcher.poll(handle)
        assert (status.state, "do not say how" in status.detail) == ("running", True)
        assert launcher.submit(job) == handle
    succeed(folder)
    assert launcher.poll(handle).state == "succeeded"
    assert queue.submitted == 1


def test_an_exit_code_without_its_bundle_waits_for_it(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(), Path(job.output_dir)
    handle = launcher.submit(job)
    begin(folder)
    queue.sees = COMPLETED
    Exit(exit_code=0, reason="ended", wall_s=1.0, ended_utc=utc_now()).write(folder)
    assert launcher.poll(handle).state == "running"
    (folder / "bundle").mkdir()
    atomic_write_json(folder / "bundle/result.json", {})
    assert launcher.poll(handle).state == "succeeded"


@pytest.mark.parametrize(("began", "state"), [(True, "lost"), (False, "failed")])
def test_files_that_stay_silent_are_a_verdict_after_the_settling_time_also_across_a_restart(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher], began: bool, state: str
) -> None:
    launcher, folder = make(settle_s=60.0), Path(job.output_dir)
    handle = launcher.submit(job)
    if began:
        begin(folder)
    queue.sees = COMPLETED
    assert launcher.poll(handle).state == "running"
    age(folder, 61.0, file="over.json", key="seen_utc")
    assert launcher.poll(handle).state == state
    again = make(settle_s=60.0)
    assert again.poll(handle).state == state
    again.submit(job)
    assert queue.submitted == (2 if state == "lost" else 1)


def test_a_job_that_went_back_into_the_queue_settles_anew(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(), Path(job.output_dir)
    handle = launcher.submit(job)
    begin(folder)
    queue.sees = slurm_look("NODE_FAIL", "")
    assert launcher.poll(handle).state == "running"
    age(folder, 3600.0, file="over.json", key="seen_utc")
    queue.sees = RUNNING
    assert launcher.poll(handle).state == "running"
    queue.sees = COMPLETED
    assert launcher.poll(handle).state == "running"


def test_each_look_for_missing_files_changes_the_folder_and_leaves_nothing_in_it(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    """A change of its own is what makes an NFS client ask the server again."""
    launcher, folder = make(), Path(job.output_dir)
    handle = launcher.submit(job)
    begin(folder)
    queue.sees = COMPLETED
    launcher.poll(handle)
    before = sorted(os.listdir(folder))
    for _ in range(2):
        os.utime(folder, (0, 0))
        assert launcher.poll(handle).state == "running"
        assert folder.stat().st_mtime > 0
    assert sorted(os.listdir(folder)) == before


def test_a_cancelled_job_needs_no_files(job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]) -> None:
    launcher = make()
    handle = launcher.submit(job)
    queue.sees = slurm_look("CANCELLED", "")
    Path(handle, "cancel").write_text("It was cancelled.\n")
    assert launcher.poll(handle).state == "failed"


@pytest.mark.parametrize("batch_id", ["1", ""], ids=["known", "lost id"])
def test_a_batch_system_that_stays_away_is_waited_for_as_long_as_a_job_may_wait(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher], batch_id: str
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    record = json.loads((folder / "batch.json").read_text())
    atomic_write_json(folder / "batch.json", {**record, "batch_id": batch_id})
    queue.sees = AWAY
    assert launcher.poll(handle).state == "pending"
    age(folder, 601.0)
    with pytest.raises(TransientError, match="Unable to contact"):
        launcher.poll(handle)
    with pytest.raises(TransientError, match="Unable to contact"):
        launcher.submit(job)
    assert queue.submitted == 1
    queue.sees = RUNNING
    if batch_id:
        assert launcher.poll(handle).state == "running", "the job is still the same one"


def test_a_job_that_runs_may_outlast_a_batch_system_that_is_away(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    begin(folder)
    age(folder, 7200.0)
    queue.sees = AWAY
    assert launcher.poll(handle).state == "running"


def test_a_submission_without_an_answer_is_waited_for_as_long(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    record = json.loads((folder / "batch.json").read_text())
    atomic_write_json(folder / "batch.json", {**record, "batch_id": ""})
    with hold(folder / "submitting"):
        assert launcher.poll(handle).detail == "It is being submitted."
        age(folder, 601.0)
        with pytest.raises(TransientError, match="has not answered the submission"):
            launcher.poll(handle)


def test_a_withdrawal_that_was_refused_is_tried_again(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    age(folder, 601.0)
    queue.refuses_to_cancel = True
    with pytest.raises(TransientError):
        launcher.poll(handle)
    queue.refuses_to_cancel = False
    assert launcher.poll(handle).state == "pending"
    assert queue.cancelled == ["1"]


def test_a_withdrawn_job_that_the_queue_keeps_is_an_error_and_no_wait_without_end(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmloop.adapters.batch.launcher._END_S", 0.05)
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    age(folder, 601.0)
    assert launcher.poll(handle).state == "pending"
    time.sleep(0.06)
    with pytest.raises(TransientError, match="keeps it: Slurm job 1 waits"):
        launcher.poll(handle)
    queue.sees = slurm_look("CANCELLED", "")
    assert launcher.poll(handle).state == "failed"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_that_slurm_has_lost_and_its_accounting_calls_alive_is_gone(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """`sacctmgr show runawayjobs` lists them: squeue knows none of them, and nothing ever ends them."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    (commands / "sacct").write_text(f"#!/bin/sh\necho '{state}|None'\n")
    (commands / "sbatch").write_text("#!/bin/sh\necho 7\n")
    for path in commands.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    section = Section(poll_s=1e-6, settle_s=0.0)
    launcher = BatchLauncher(section=section, dialect=SlurmDialect(section), command=("true",))
    status = launcher.poll(launcher.submit(job))
    assert (status.state, f"Slurm job 7: {state}" in status.detail) == ("lost", True), status


def test_a_job_that_is_back_in_the_queue_waits_from_then_on_also_across_a_restart(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    begin(folder)
    age(folder, 1230.0)
    age(folder, 1200.0, file="started.json", key="started_utc")  # waited half a minute, then ran for 20
    queue.sees = slurm_look("PENDING", "BeginTime")
    assert launcher.poll(handle).state == "pending"
    assert queue.cancelled == []
    age(folder, 590.0, file="back.json", key="seen_utc")
    assert make(queue_wait_s=600.0).poll(handle).state == "pending"
    assert queue.cancelled == []
    age(folder, 601.0, file="back.json", key="seen_utc")
    launcher.poll(handle)
    assert queue.cancelled == ["1"]
    assert "It waited 600 s in the queue" in (folder / "cancel").read_text()


def test_a_job_that_is_preempted_twice_waits_anew_each_time(
    job: TrainJob, queue: Queue, make: Callable[..., BatchLauncher]
) -> None:
    launcher, folder = make(queue_wait_s=600.0), Path(job.output_dir)
    handle = launcher.submit(job)
    for ran_s in (3000.0, 1500.0, 0.0):
        begin(folder)
        age(folder, ran_s, file="started.json", key="started_utc")
        assert launcher.poll(handle).state == "pending"
        assert queue.cancelled == []
        age(folder, 601.0, file="back.json", key="seen_utc")


@pytest.mark.parametrize("zone", ["WEST8", "EAST-9", "UTC0"])
def test_sacct_is_asked_from_before_the_submission_wherever_the_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """`date` reads a time as sacct does: in TZ. sacct too exits with 1 when the start lies in the future."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "squeue").write_text("#!/bin/sh\n")
    (commands / "sacct").write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in --starttime=*) start=$(date -d "${word#--starttime=}" +%s);; esac; done\n'
        'now=$(date +%s)\n[ "$start" -le "$now" ] || { echo "Start time is after the end time" >&2; exit 1; }\n'
        'echo "$start" >"${0%/*}/start"\necho 7\n'
    )
    for name in ("squeue", "sacct"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TZ", zone)
    submitted_s = time.time()
    attempt = Attempt(
        attempt=1, token="t", name="fl-1", command=(), stop=(), threads=1, deadline_s=1.0, save_after_s=1.0,
        grace_s=1.0, submitted_utc=utc_text(submitted_s),
    )  # fmt: skip
    assert SlurmDialect(Section()).find(attempt) == "7"
    assert 59 <= submitted_s - int((commands / "start").read_text()) <= 62
