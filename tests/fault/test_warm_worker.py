"""The warm worker when something kills it, changes what it has loaded, or is there before it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filmloop.adapters.local.held import hold
from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.mark import marked_processes
from filmloop.adapters.local.runfolder import Launch
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.adapters.local.workerline import LOCK, SOCKET, WORKER_LOG, at, private_folder
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.core.documents import TrainJob
from filmloop.core.retry import wait_until
from filmloop.ports.launcher import Launcher
from filmloop.testing.contracts import launcher as launching
from rigs.warm import gone, kill, ready

STANDIN = "filmloop.testing.standin_trainer"
pytestmark = pytest.mark.timeout(600)  # a worker loads torch: 3 s, minutes on a machine that is busy with other things

Make = Callable[..., WarmWorker]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[WarmWorker] = []

    def worker(idle_s: float = 300.0, max_jobs: int = 50, patience_s: float = 300.0) -> WarmWorker:
        made.append(WarmWorker(tmp_path / "worker", idle_s=idle_s, max_jobs=max_jobs, patience_s=patience_s))
        return made[-1]

    yield worker
    if made:
        made[-1].stop()


def launcher_of(worker: WarmWorker, *, ranks: int = 1) -> LocalLauncher:
    return LocalLauncher(section=LauncherSection(processes=ranks), module=STANDIN, grace_s=0.5, worker=worker)


def site_of(tmp_path: Path, worker: WarmWorker, *, ranks: int = 1) -> launching.LauncherSite:
    return launching.LauncherSite(runs=tmp_path / "runs", make=lambda: launcher_of(worker, ranks=ranks))


def pids_in_log(handle: str) -> tuple[int, int]:
    """(supervisor, command) of the latest attempt."""
    found = wait_until(
        lambda: re.findall(r"supervisor (\d+), command (\d+)", Path(handle, "run.log").read_text()) or None,
        deadline_s=60,
        what="the supervisor's first line",
    )
    return int(found[-1][0]), int(found[-1][1])


def waiting_job(site: launching.LauncherSite) -> tuple[TrainJob, Launcher, str]:
    """A job that runs until it is told to go on, its launcher and its handle."""
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    launching.started(job)
    return job, launcher, handle


def in_the_foreground(worker: WarmWorker) -> subprocess.Popen[str]:
    """As `filmloop worker run` is."""
    script = "import pathlib, sys; from filmloop.adapters.local.workerclient import WarmWorker\n"
    script += "WarmWorker(pathlib.Path(sys.argv[1]), idle_s=300.0).run()"
    return subprocess.Popen(
        [sys.executable, "-c", script, str(worker.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def is_cold(handle: str) -> bool:
    return "cold start" in Path(handle, "run.log").read_text()


def test_a_job_outlives_the_worker_and_the_next_one_gets_a_new_worker(tmp_path: Path, make: Make) -> None:
    worker = make()
    site = site_of(tmp_path, worker)
    job, launcher, handle = waiting_job(site)
    first = ready(worker)
    kill(first)
    gone(worker)
    assert launcher.poll(handle).state == "running"
    Path(job.output_dir, "go").touch()
    assert launching.ended(launcher, handle).state == "succeeded"
    # It was killed while idle: its socket lies there, and nobody listens.
    assert (worker.folder / SOCKET).exists()
    second = site.job("succeed", job_id="j2")
    assert launching.ended(launcher, launcher.submit(second)).state == "succeeded"
    assert ready(worker) != first
    assert not is_cold(second.output_dir)


def test_a_worker_killed_while_it_loads_leaves_the_job_to_the_next(tmp_path: Path, make: Make) -> None:
    worker = make()
    worker.start()
    assert worker.status()["state"] == "starting"
    site = site_of(tmp_path, worker)
    job, launcher = site.job("succeed"), site.make()
    handles: list[str] = []
    caller = threading.Thread(target=lambda: handles.append(launcher.submit(job)))
    caller.start()
    wait_until(lambda: Path(job.output_dir, "launch.json").exists() or None, deadline_s=60, what="the submission")
    pid = worker._pid()
    assert pid is not None
    kill(pid)
    caller.join()
    assert launching.ended(launcher, handles[0]).state == "succeeded"
    assert launching.starts(job) == 1


def test_no_rank_survives_its_supervisor_or_its_agent_and_the_job_starts_again(tmp_path: Path, make: Make) -> None:
    worker = make()
    site = site_of(tmp_path, worker, ranks=2)
    job, launcher = site.job("hang"), site.make()
    for attempt, victim in enumerate((0, 1), start=1):
        handle = launcher.submit(job)
        pids = launching.started(job, processes=4 * attempt)[-4:]
        token = Launch.read(Path(handle)).token
        assert set(pids) < set(marked_processes(token)), "the ranks, what they started, and the agent"
        kill(pids_in_log(handle)[victim])
        assert launching.ended(launcher, handle).state == "lost"
        assert launching.alive(pids) == []
        assert marked_processes(token) == []
    assert not is_cold(handle)


def test_a_killed_rank_ends_the_others_and_the_job_is_lost_not_failed(tmp_path: Path, make: Make) -> None:
    worker = make()
    site = site_of(tmp_path, worker, ranks=2)
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job, processes=2)
    kill(pids[1])
    status = launching.ended(launcher, handle)
    assert (status.state, status.exit_code) == ("lost", 128 + signal.SIGKILL)
    assert "ended first, with exit code -9" in status.log_tail
    assert launching.alive(pids) == []


def test_two_callers_start_one_worker_and_one_run(tmp_path: Path, make: Make) -> None:
    worker = make()
    site = site_of(tmp_path, worker)
    job = site.job("wait")
    handles: list[str] = []
    callers = [threading.Thread(target=lambda: handles.append(site.make().submit(job))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    launching.started(job)
    Path(job.output_dir, "go").touch()
    assert launching.ended(site.make(), handles[0]).state == "succeeded"
    assert launching.starts(job) == 1
    assert worker.status()["jobs"] == 1


def test_a_caller_that_is_killed_has_its_job_all_the_same(tmp_path: Path, make: Make) -> None:
    worker = make()
    worker.start()
    site = site_of(tmp_path, worker)
    job = site.job("succeed")
    code = f"""
import sys
from pathlib import Path
from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.config.schema import LocalLauncher as Section
from filmloop.core.documents import TrainJob
worker = WarmWorker(Path({str(worker.folder)!r}), idle_s=300.0, patience_s=300.0)
LocalLauncher(section=Section(processes=1), module={STANDIN!r}, worker=worker).submit(
    TrainJob.model_validate_json(sys.argv[1])
)
"""
    caller = subprocess.Popen([sys.executable, "-c", code, job.model_dump_json()])
    wait_until(lambda: Path(job.output_dir, "launch.json").exists() or None, deadline_s=60, what="the submission")
    caller.kill()
    caller.wait()
    launcher = site.make()
    handle = launcher.submit(job)
    assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 1


def test_a_changed_file_or_the_last_of_its_jobs_makes_the_worker_begin_anew(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    # Python imports it at every start, so the worker has it loaded as it has filmloop.
    loaded = code / "sitecustomize.py"
    loaded.write_text("version = 1\n")
    monkeypatch.setenv("PYTHONPATH", f"{code}:{os.environ.get('PYTHONPATH', '')}")
    worker = make(max_jobs=1)
    worker.start()
    ready(worker)
    log = worker.folder / WORKER_LOG
    loaded.write_text("version = 23\n")
    site = site_of(tmp_path, worker)
    job, launcher = site.job("succeed"), site.make()
    assert launching.ended(launcher, launcher.submit(job)).state == "succeeded"
    assert f"begins anew: {loaded} was changed" in log.read_text()
    assert not is_cold(job.output_dir)
    wait_until(lambda: "it has had 1 jobs" in log.read_text() or None, deadline_s=60, what="the end of its jobs")
    wait_until(lambda: log.read_text().count("is ready") >= 3 or None, deadline_s=300, what="the one after it")
    assert worker.status()["stands_in"], "as the first one did"


@pytest.fixture
def set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clock that was set back by ten years since every file here was written; returns a file that workers load."""
    code = tmp_path / "code"
    code.mkdir()
    loaded = code / "sitecustomize.py"
    loaded.write_text(
        "import time\nnow_ns = time.time_ns\ntime.time_ns = lambda: now_ns() - 10 * 365 * 86400 * 10**9\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{code}:{os.environ.get('PYTHONPATH', '')}")
    return loaded


@pytest.mark.slow
@pytest.mark.usefixtures("set_back")
def test_a_clock_that_was_set_back_makes_the_worker_begin_anew_once(tmp_path: Path, make: Make) -> None:
    worker = make()
    worker.start()
    log, site = worker.folder / WORKER_LOG, site_of(tmp_path, worker)
    wait_until(lambda: log.read_text().count("is ready") > 1 or None, deadline_s=300, what="the second worker")
    job, launcher = site.job("succeed"), site.make()
    assert launching.ended(launcher, launcher.submit(job)).state == "succeeded"
    assert not is_cold(job.output_dir)
    assert log.read_text().count("begins anew") == 1


@pytest.mark.slow
def test_a_worker_that_begins_anew_for_ever_ends_when_nothing_is_asked_of_it(
    tmp_path: Path, make: Make, set_back: Path
) -> None:
    with set_back.open("a") as code:
        code.write("import os\nos.utime(__file__)\n")  # changed by each start of Python
    worker = make(idle_s=5.0)
    worker.start()
    log = worker.folder / WORKER_LOG
    wait_until(lambda: "ends: nothing was asked of it" in log.read_text() or None, deadline_s=300, what="its end")
    assert "begins anew" in log.read_text()


def test_a_caller_of_another_installation_is_not_served_by_this_one(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make()
    worker.start()
    first = ready(worker)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    site = site_of(tmp_path, worker)
    job, launcher = site.job("succeed"), site.make()
    assert launching.ended(launcher, launcher.submit(job)).state == "succeeded"
    assert ready(worker) != first


def test_an_idle_worker_and_one_without_its_folder_end(tmp_path: Path, make: Make) -> None:
    worker = make(idle_s=0.1)
    worker.start()
    gone(worker)
    assert "ends: nothing was asked of it" in (worker.folder / WORKER_LOG).read_text()


def test_a_worker_that_somebody_runs_takes_the_place_of_one_that_a_caller_started(tmp_path: Path, make: Make) -> None:
    worker = make()
    job, launcher, handle = waiting_job(site_of(tmp_path, worker))
    started = ready(worker)
    with in_the_foreground(worker) as first:
        wait_until(lambda: worker.status().get("pid") == first.pid or None, deadline_s=300, what="the one that is run")
        assert first.pid != started
        assert launcher.poll(handle).state == "running"
        Path(job.output_dir, "go").touch()
        assert launching.ended(launcher, handle).state == "succeeded"
        with in_the_foreground(worker) as second:
            assert "alive already" in second.communicate(timeout=300)[1], (
                "two that are run would end each other for ever"
            )
        assert second.returncode != 0
        assert worker.status()["pid"] == first.pid
        worker.stop()
        assert first.wait(timeout=60) == 0


def test_a_folder_that_others_may_enter_means_a_cold_start_that_says_why(tmp_path: Path, make: Make) -> None:
    worker = make()
    worker.folder.mkdir(mode=0o755)
    site = site_of(tmp_path, worker)
    job, launcher = site.job("succeed"), site.make()
    assert launching.ended(launcher, launcher.submit(job)).state == "succeeded"
    assert "cold start" in Path(job.output_dir, "run.log").read_text()
    assert "open to others" in Path(job.output_dir, "run.log").read_text()
    assert not (worker.folder / SOCKET).exists()


def test_a_worker_that_hangs_means_a_cold_start_and_the_job_runs_once(tmp_path: Path, make: Make) -> None:
    worker = make(patience_s=1.0)
    private_folder(worker.folder)
    with hold(worker.folder / LOCK), at(worker.folder) as here, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{here}/{SOCKET}")
        deaf.listen()
        site = site_of(tmp_path, worker)
        job, launcher = site.job("succeed"), site.make()
        handle = launcher.submit(job)
        wait_until(lambda: launching.starts(job) or None, deadline_s=250, what="the cold start")
        assert "not ready within 1 s" in Path(handle, "run.log").read_text()
        # The deaf worker holds nothing of the job: its end is seen at once.
        assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 1


def test_a_caller_that_did_not_wait_for_the_worker_is_not_served_by_it_later(tmp_path: Path, make: Make) -> None:
    worker = make(patience_s=0.3)  # loading takes ten times as long
    worker.start()
    site = site_of(tmp_path, worker)
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    assert "not ready within 0.3 s" in Path(handle, "run.log").read_text()
    launching.started(job)
    ready(worker)
    log = worker.folder / WORKER_LOG
    wait_until(lambda: "was not served" in log.read_text() or None, deadline_s=60, what="the worker's look at the job")
    assert worker.status()["jobs"] == 0
    Path(job.output_dir, "go").touch()
    assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 1
