"""What every launcher must do. Subclass `LauncherContract` and provide the fixture `site`.

The adapter has to run `filmloop.testing.standin_trainer` in place of the real entry, on a machine whose run folders
and processes this process can see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from filmloop.core.documents import FileDigest, ModelChoice, TrainJob
from filmloop.core.errors import DataError
from filmloop.core.retry import wait_until
from filmloop.ports.launcher import Launcher, LaunchStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherSite:
    """An adapter under test.

    Attributes:
        runs: Folder for run folders.
        make: A new instance, as after a restart of the caller. SIGKILL follows SIGTERM after at most a second.
    """

    runs: Path
    make: Callable[[], Launcher]

    def job(self, act: str, *, job_id: str = "j1", deadline_s: float = 60.0) -> TrainJob:
        """A job for the stand-in trainer."""
        return TrainJob(
            job_id=job_id,
            model=ModelChoice(name="stand-in", frame_shape=(16, 128), hyper={"act": act}),
            fresh=(),
            output_dir=str(self.runs / job_id),
            deadline_s=deadline_s,
        )


def until(launcher: Launcher, handle: str, *states: str, deadline_s: float = 60.0) -> LaunchStatus:
    """Poll until the job is in one of `states`."""
    seen: list[LaunchStatus] = []

    def look() -> LaunchStatus | None:
        seen[:] = [launcher.poll(handle)]
        return seen[0] if seen[0].state in states else None

    what = f"{' or '.join(states)} of job {handle}"
    return wait_until(look, deadline_s=deadline_s, what=what, first_s=0.02, last=lambda: str(seen[0]))


def ended(launcher: Launcher, handle: str) -> LaunchStatus:
    """Poll until the job is over or lost."""
    return until(launcher, handle, "succeeded", "failed", "lost")


def started(job: TrainJob, *, processes: int = 1) -> list[int]:
    """Wait until so many processes of the job have said that they are there; returns their ids."""
    return wait_until(
        lambda: pids if len(pids := said_pids(job)) >= processes else None,
        deadline_s=60.0,
        what=f"the start of job {job.job_id}",
        first_s=0.02,
    )


def said_pids(job: TrainJob) -> list[int]:
    """Ids of all processes that the job ever had, as they said themselves."""
    path = Path(job.output_dir, "pids")
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def starts(job: TrainJob) -> int:
    """How often the trainer was started."""
    path = Path(job.output_dir, "starts")
    return len(path.read_text().splitlines()) if path.exists() else 0


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie that waits for its parent does not."""
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}") and _state(pid) not in "ZX"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class LauncherContract:
    """The promises of `ports.launcher.Launcher`, tested from the outside."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> LauncherSite | Iterator[LauncherSite]:
        """The adapter under test; the subclass provides it."""
        raise NotImplementedError

    def test_a_job_that_works_succeeds_with_its_bundle_and_its_numbers(self, site: LauncherSite) -> None:
        job, launcher = site.job("succeed"), site.make()
        status = ended(launcher, launcher.submit(job))
        assert (status.state, status.exit_code) == ("succeeded", 0)
        assert status.progress == {"step": 2, "loss": 0.25}
        bundle = Path(job.output_dir, "bundle")
        assert status.bundle_files == tuple(
            FileDigest.of(bundle / name, bundle) for name in ("result.json", "weights.safetensors")
        )

    def test_a_job_that_runs_tells_its_progress(self, site: LauncherSite) -> None:
        job, launcher = site.job("wait"), site.make()
        handle = launcher.submit(job)
        started(job)
        wait_until(lambda: launcher.poll(handle).progress, deadline_s=60, what="progress", first_s=0.02)
        status = launcher.poll(handle)
        assert (status.state, status.exit_code, status.progress) == ("running", None, {"step": 1, "loss": 0.5})
        assert "stand-in trainer" in status.log_tail
        Path(job.output_dir, "go").touch()
        assert ended(launcher, handle).state == "succeeded"

    def test_submitting_again_starts_nothing_while_it_runs_or_after_it_worked(self, site: LauncherSite) -> None:
        job, launcher = site.job("wait"), site.make()
        handle = launcher.submit(job)
        assert launcher.submit(job) == handle
        assert site.make().submit(job) == handle
        started(job)
        Path(job.output_dir, "go").touch()
        assert ended(launcher, handle).state == "succeeded"
        assert launcher.submit(job) == handle
        assert ended(launcher, handle).state == "succeeded"
        assert starts(job) == 1

    def test_a_handle_survives_a_restart(self, site: LauncherSite) -> None:
        job = site.job("succeed")
        handle = site.make().submit(job)
        assert ended(site.make(), handle).state == "succeeded"

    def test_a_failure_says_why_and_stays(self, site: LauncherSite) -> None:
        job, launcher = site.job("fail"), site.make()
        handle = launcher.submit(job)
        for _ in range(2):
            status = ended(launcher, handle)
            assert (status.state, status.exit_code) == ("failed", 6)
            assert (status.error, status.detail, status.hint) == (
                "TrainingError",
                "The loss is not finite at step 7.",
                "Lower training.hyper.learning_rate.",
            )
            assert "not finite at step 7" in status.log_tail
            assert launcher.submit(job) == handle
        assert starts(job) == 1

    def test_a_crash_shows_the_end_of_the_log(self, site: LauncherSite) -> None:
        launcher = site.make()
        status = ended(launcher, launcher.submit(site.job("crash")))
        assert (status.state, status.exit_code) == ("failed", 1)
        assert "the stand-in trainer crashed" in status.detail
        assert "Traceback" in status.log_tail

    @pytest.mark.parametrize("act", ["no_bundle", "bundle_then_fail"])
    def test_only_exit_code_0_with_a_bundle_is_a_success(self, site: LauncherSite, act: str) -> None:
        launcher = site.make()
        status = ended(launcher, launcher.submit(site.job(act)))
        assert (status.state, status.bundle_files) == ("failed", ())

    @pytest.mark.parametrize(
        ("act", "error", "says"),
        [
            ("requeue_once", "", "told to stop"),
            ("killed_once", "", "signal 9"),
            ("transient_once", "TransientError", "The ranks lost each other."),
        ],
    )
    def test_a_job_that_may_work_the_next_time_is_lost_and_goes_on_when_submitted_again(
        self, site: LauncherSite, act: str, error: str, says: str
    ) -> None:
        job, launcher = site.job(act), site.make()
        handle = launcher.submit(job)
        status = ended(launcher, handle)
        assert (status.state, status.error) == ("lost", error)
        assert says in status.detail
        assert launcher.submit(job) == handle
        assert ended(launcher, handle).state == "succeeded"
        assert starts(job) == 2

    def test_cancel_ends_every_process_and_the_job_stays_cancelled(self, site: LauncherSite) -> None:
        job, launcher = site.job("hang"), site.make()
        handle = launcher.submit(job)
        pids = started(job, processes=2)
        assert alive(pids) == pids
        site.make().cancel(handle)
        status = ended(launcher, handle)
        assert status.state == "failed"
        assert "cancelled" in status.detail
        assert alive(pids) == []
        launcher.cancel(handle)
        launcher.submit(job)
        assert ended(launcher, handle) == status
        assert starts(job) == 1

    def test_a_lost_job_that_is_cancelled_stays_away(self, site: LauncherSite) -> None:
        job, launcher = site.job("killed_once"), site.make()
        handle = launcher.submit(job)
        assert ended(launcher, handle).state == "lost"
        launcher.cancel(handle)
        launcher.submit(job)
        status = ended(launcher, handle)
        assert (status.state, "cancelled" in status.detail) == ("failed", True)
        assert starts(job) == 1

    def test_cancelling_a_job_that_ended_changes_nothing(self, site: LauncherSite) -> None:
        launcher = site.make()
        handle = launcher.submit(site.job("succeed"))
        before = ended(launcher, handle)
        launcher.cancel(handle)
        assert launcher.poll(handle) == before

    def test_the_deadline_ends_every_process(self, site: LauncherSite) -> None:
        # 5 s: long enough for two interpreters to start on a loaded machine; 0.3 s on an idle one.
        job, launcher = site.job("hang", deadline_s=5.0), site.make()
        handle = launcher.submit(job)
        pids = started(job, processes=2)
        status = ended(launcher, handle)
        assert status.state == "failed"
        assert "deadline" in status.detail
        assert alive(pids) == []

    def test_two_jobs_do_not_disturb_each_other(self, site: LauncherSite) -> None:
        launcher = site.make()
        waiting, hanging = site.job("wait", job_id="j1"), site.job("hang", job_id="j2")
        first, second = launcher.submit(waiting), launcher.submit(hanging)
        started(waiting)
        started(hanging, processes=2)
        launcher.cancel(second)
        assert launcher.poll(first).state == "running"
        Path(waiting.output_dir, "go").touch()
        assert ended(launcher, first).state == "succeeded"

    def test_an_unknown_handle_is_an_error(self, site: LauncherSite) -> None:
        with pytest.raises(DataError):
            site.make().poll(str(site.runs / "never-submitted"))
        with pytest.raises(DataError):
            site.make().cancel(str(site.runs / "never-submitted"))
