"""What goes wrong between the launcher, the services of Globus Compute, the endpoint and its workers.

Every scenario proves that its fault happened, that one training ran to one result, and that no process is left.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.compute import standing
from filmloop.adapters.globus.compute.launcher import GlobusLauncher
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, TrainingError, TransientError
from filmloop.core.retry import wait_until
from filmloop.launching import launch
from filmloop.ports.launcher import LaunchStatus
from filmloop.testing import processes
from filmloop.testing.contracts.launcher import alive, ended, said_pids, started, starts, until
from filmloop.testing.slurm import SlurmRig
from rigs.endpoint import ENGINES
from rigs.globus import Compute
from rigs.launching import job_in, killed_client, launcher_of

SUBMIT = "POST /v3/endpoints/<uuid:endpoint_id>/submit"
SURVIVED: list[str] = []


@pytest.fixture(autouse=True)
def _count(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says at the end how many faults were survived: what a test has failed is not among them."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        SURVIVED.append(request.node.name)


@pytest.fixture(scope="module", autouse=True)
def _report(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if SURVIVED:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nGlobus Compute: {len(SURVIVED)} faults survived, nothing trained twice, no process left")


@pytest.fixture
def site(tmp_path: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GlobusLauncher]:
    monkeypatch.setattr(standing, "_LOOK_S", 5.0)
    return lambda **keys: launcher_of(compute, tmp_path / "launches", **keys)


def finished(
    launcher: GlobusLauncher, job: TrainJob, *, trainings: int, at_least: int | None = None, submissions: int = 1
) -> LaunchStatus:
    """Let the job end; one result, so many starts of the trainer, nothing left of any."""
    Path(job.output_dir).mkdir(exist_ok=True)
    Path(job.output_dir, "go").touch()
    for _ in range(submissions):
        status = ended(launcher, launcher.submit(job))
        if status.state != "lost":
            break
    assert status.state == "succeeded", status
    assert (trainings if at_least is None else at_least) <= starts(job) <= trainings
    wait_until(lambda: None if alive(said_pids(job)) else True, deadline_s=20, what="the end of every process")
    assert len(status.bundle_files) == 2
    return status


def ancestors(pid: int) -> list[int]:
    found = []
    while (pid := processes.parent(pid)) > 1:
        found.append(pid)
    return found


def worker_of(compute: Compute, job: TrainJob) -> int:
    """The worker process that runs the function: what the trainer's supervisor was started by."""
    supervisor = next(
        pid for pid in ancestors(said_pids(job)[-1]) if "filmloop.adapters.globus.compute.task" in words(pid)
    )
    return processes.parent(supervisor)


def words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@pytest.mark.slow
def test_a_killed_worker_costs_one_attempt(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(engine="pool"), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    pids = started(job)
    os.kill(worker_of(compute, job), signal.SIGKILL)
    status = ended(launcher, handle)
    assert status.state == "lost"
    wait_until(lambda: None if alive(pids) else True, deadline_s=20, what="the end of the trainer")
    finished(launcher, job, trainings=2)


@pytest.mark.slow
def test_a_killed_manager_costs_an_attempt_or_two(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(engine="pool"), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    started(job)
    manager = [pid for pid in ancestors(worker_of(compute, job)) if "process_worker_pool" in words(pid)][-1]
    os.kill(manager, signal.SIGKILL)
    # A block that failed takes its user endpoint along within seconds (parsl's TooManyJobFailuresError). Either that one
    # still tells the loss, or nobody does, and a look sees that the training goes on: workers live until they miss their
    # manager. The second attempt finds the first one's end, or its checkpoint; one that is sent into a user endpoint that
    # ends never begins, and is lost too.
    with suppress(TransientError):
        until(launcher, handle, "lost", deadline_s=40)
    assert launcher.poll(handle).state in ("running", "lost")
    finished(launcher, job, trainings=2, at_least=1, submissions=3)


@pytest.mark.slow
@pytest.mark.parametrize("taken_for_alive", [False, True])
def test_a_killed_user_endpoint_takes_its_training_with_it_and_the_next_attempt_goes_on(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path, taken_for_alive: bool
) -> None:
    launcher, job = site(silent_s=5.0), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    started(job)
    its_own = worker_of(compute, job)  # the function runs in a thread of it
    assert its_own in compute.endpoint.user_endpoints()
    (its_id,) = re.findall(r"Endpoint \((\S+), uep", words(its_own))
    os.kill(its_own, signal.SIGKILL)
    assert "told to stop" in ended(launcher, handle).detail
    if taken_for_alive:  # the second attempt is put before the dead one, and nobody takes it
        compute.hosted.fault("taken_for_alive", match={"endpoint": its_id})
    finished(launcher, job, trainings=2)
    sending = launcher._journal.find(handle).sending()
    assert sending is not None
    assert sending.attempt == 2
    if taken_for_alive:
        assert compute.hosted.fired("taken_for_alive") == 1
        assert sending.twins


@pytest.mark.slow
def test_a_training_whose_user_endpoint_was_killed_is_found_finished_by_a_look(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(engine="pool"), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    started(job)
    compute.endpoint.kill_user_endpoints()
    Path(job.output_dir, "go").touch()
    assert ended(launcher, handle).state == "succeeded"
    finished(launcher, job, trainings=1)


@pytest.mark.slow
def test_a_killed_endpoint_is_found_silent_and_the_job_goes_on_when_it_is_back(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(silent_s=4.0), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    started(job)
    compute.endpoint.kill()
    status = ended(launcher, handle)
    assert (status.state, "offline" in status.detail or "told to stop" in status.detail) == ("lost", True)
    with pytest.raises(TransientError):
        launcher.submit(job)
    compute.endpoint.restore()
    finished(launcher, job, trainings=2)


@pytest.mark.slow
def test_a_broker_that_is_down_for_30_s_costs_nothing(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(silent_s=120.0), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    started(job)
    compute.broker.stop()
    Path(job.output_dir, "go").touch()
    end_s = time.monotonic() + 30.0
    while time.monotonic() < end_s:
        assert launcher.poll(handle).state in ("pending", "running")
        time.sleep(0.5)
    compute.broker.start()
    assert ended(launcher, handle).state == "succeeded"
    finished(launcher, job, trainings=1)


@pytest.mark.parametrize("moment", ["after the intent", "before the ids", "after the ids"])
def test_a_client_that_was_killed_goes_on_with_the_one_training(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path, moment: str
) -> None:
    job = job_in(tmp_path, "wait")
    assert killed_client(compute, tmp_path / "launches", job, moment) == -signal.SIGKILL
    launcher = site()
    sent = compute.hosted.counts()[SUBMIT]
    handle = launcher.submit(job)
    # The task group tells that the first submission was taken: nothing is sent a second time.
    assert compute.hosted.counts()[SUBMIT] - sent == (1 if moment == "after the intent" else 0)
    started(job)
    until(launcher, handle, "running")
    finished(launcher, job, trainings=1)


def test_a_submission_whose_answer_was_lost_trains_once(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(), job_in(tmp_path, "wait")
    launcher.submit(job_in(tmp_path, "succeed", job_id="j0"))
    compute.hosted.fault("lose_answer", times=2, match={"route": SUBMIT})
    with pytest.raises(TransientError):
        launcher.submit(job)
    assert compute.hosted.fired("lose_answer") == 2  # the SDK tried twice, and the service took both
    started(job)
    finished(site(), job, trainings=1)


def test_a_service_that_is_away_is_no_verdict(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(), job_in(tmp_path, "wait")
    handle = launcher.submit(job)
    until(launcher, handle, "running")
    compute.hosted.fault("refuse", times=-1, match={"route": "GET /v2/tasks/<uuid:task_id>"}, status=503)
    status = wait_until(
        lambda: found if "stands" in (found := launcher.poll(handle)).detail else None, deadline_s=60, what="the 503"
    )
    assert status.state == "running"
    assert compute.hosted.fired("refuse") > 0
    compute.hosted.clear_faults()
    finished(launcher, job, trainings=1)


def test_options_that_the_endpoint_refuses_are_its_own_words(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    job = job_in(tmp_path, "wait")
    with pytest.raises(ConfigError) as refused:
        site(options={**ENGINES["threads"], "workers": "many"}).submit(job)
    assert "workers" in refused.value.message
    assert "[launcher.options]" in refused.value.hint
    assert any(line["status"] == 422 for line in compute.hosted.log() if line["route"] == SUBMIT)
    assert starts(job) == 0
    wait_until(lambda: compute.endpoint.online() or None, deadline_s=30, what="the endpoint's next heartbeat")
    finished(site(), job, trainings=1)


def test_an_endpoint_that_nobody_knows_is_a_mistake_in_the_site_file(
    site: Callable[..., GlobusLauncher], tmp_path: Path
) -> None:
    job = job_in(tmp_path, "succeed")
    with pytest.raises(ConfigError, match="does not know"):
        site(endpoint="00000000-0000-4000-8000-000000000000").submit(job)
    finished(site(), job, trainings=1)


def test_an_endpoint_that_is_offline_takes_the_job_later(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path
) -> None:
    launcher, job = site(), job_in(tmp_path, "wait")
    launcher.submit(job_in(tmp_path, "succeed", job_id="j0"))
    compute.hosted.fault("endpoint_offline", times=-1)
    with pytest.raises(TransientError):
        launcher.submit(job)
    assert compute.hosted.fired("endpoint_offline") > 0
    assert starts(job) == 0
    compute.hosted.clear_faults()
    finished(launcher, job, trainings=1)


def test_another_filmloop_over_there_is_refused_before_the_first_job(
    site: Callable[..., GlobusLauncher], tmp_path: Path
) -> None:
    old = tmp_path / "old/filmloop"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text('__version__ = "0.0.7"\n')
    python = tmp_path / "old/python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={old.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = job_in(tmp_path, "wait")
    with pytest.raises(ConfigError) as refused:
        site(python=str(python)).submit(job)
    assert "filmloop 0.0.7" in refused.value.message
    assert "pip install" in refused.value.hint
    # Where short functions have no place of their own, the training function finds out.
    launcher = site(python=str(python), control={})
    status = ended(launcher, launcher.submit(job_in(tmp_path, "wait", job_id="j2")))
    assert (status.state, status.error, starts(job)) == ("failed", "ConfigError", 0)
    finished(site(), job, trainings=1)


def test_an_interpreter_without_filmloop_is_refused_before_the_first_job(
    site: Callable[..., GlobusLauncher], tmp_path: Path
) -> None:
    job = job_in(tmp_path, "wait")
    with pytest.raises(ConfigError, match=r"cannot train|cannot run"):
        site(python="/usr/bin/env").submit(job)
    assert starts(job) == 0


def test_a_training_that_hangs_is_ended_by_its_deadline(site: Callable[..., GlobusLauncher], tmp_path: Path) -> None:
    launcher, job = site(), job_in(tmp_path, "hang", deadline_s=4.0)
    handle = launcher.submit(job)
    pids = started(job, processes=2)
    status = ended(launcher, handle)
    assert (status.state, "deadline" in status.detail, alive(pids)) == ("failed", True, [])
    launcher.submit(job)
    assert starts(job) == 1


def test_a_supervisor_that_hangs_is_given_up_by_our_own_clock(
    site: Callable[..., GlobusLauncher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(standing, "_SPARE_S", 2.0)
    launcher, job = site(), job_in(tmp_path, "wait", deadline_s=4.0)
    handle = launcher.submit(job)
    started(job)
    supervisor = next(pid for pid in ancestors(said_pids(job)[0]) if "compute.task" in words(pid))
    os.kill(supervisor, signal.SIGSTOP)
    status = ended(launcher, handle)
    assert (status.state, "deadline" in status.detail) == ("lost", True)
    os.kill(supervisor, signal.SIGKILL)
    # Its trainer goes with it; told to go on before that, it would be cut off while it writes.
    wait_until(lambda: None if alive(said_pids(job)) else True, deadline_s=20, what="the end of the trainer")
    finished(launcher, job, trainings=2)


@pytest.mark.parametrize(("act", "trainings"), [("fail", 1), ("bundle_then_fail", 1), ("no_bundle", 1)])
def test_a_script_that_fails_ships_no_model(
    site: Callable[..., GlobusLauncher], tmp_path: Path, act: str, trainings: int
) -> None:
    job, handles = job_in(tmp_path, act), list[str]()
    with pytest.raises(TrainingError) as failed:
        launch(site(), job, poll_s=0.1, keep_handle=handles.append, tell=lambda _: None)
    if act != "no_bundle":
        assert "not finite at step 7" in failed.value.message
        assert "learning_rate" in failed.value.hint
    assert starts(job) == trainings
    assert site().poll(handles[0]).bundle_files == ()


def test_a_result_that_is_too_large_for_the_service_loses_the_attempt_and_not_the_training(
    site: Callable[..., GlobusLauncher], compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filmloop.adapters.globus.compute import client as service

    launcher, job = site(control={}), job_in(tmp_path, "succeed")
    with monkeypatch.context() as patch:
        # Another text of the function, as a site with a mistake in it would send: the answer drags 12 MB along.
        patch.setattr(service, "run", _heavy)
        handle = launcher.submit(job)
    status = ended(launcher, handle)
    assert (status.state, "MaxResultSizeExceeded" in status.detail) == ("lost", True)
    finished(site(), job, trainings=1)


def _heavy(request: Any) -> Any:
    import json
    import os
    import subprocess
    import sys

    program = [sys.executable, "-m", "filmloop.adapters.globus.compute.task", str(os.getpid())]
    subprocess.run(program, input=json.dumps(request).encode(), capture_output=True, check=False)
    return {"answer": {}, "heavy": "x" * 12_000_000}


def test_a_cancel_reaches_the_training_without_a_place_for_short_functions(
    site: Callable[..., GlobusLauncher], tmp_path: Path
) -> None:
    launcher, job = site(control={}), job_in(tmp_path, "hang")
    handle = launcher.submit(job)
    pids = started(job, processes=2)
    assert launcher.poll(handle).state == "pending"  # nobody can look
    launcher.cancel(handle)
    assert (launcher.poll(handle).state, alive(pids)) == ("failed", [])


@pytest.mark.slow
def test_a_job_that_waits_too_long_in_the_queue_is_withdrawn_and_never_begins(
    slurm_compute: Compute, slurm: SlurmRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "_SKEW_S", 2.0)
    launcher = launcher_of(slurm_compute, tmp_path / "launches", engine="slurm", queue_wait_s=8.0)
    job = job_in(tmp_path, "succeed")
    slurm.drain()
    handle = launcher.submit(job)
    assert launcher.poll(handle).state == "pending"
    status = ended(launcher, handle)
    assert (status.state, "withdrawn" in status.detail) == ("failed", True)
    slurm.drain(False)
    # Its turn comes, and it reads that nobody wants it any more.
    sending = launcher._journal.find(handle).sending()
    assert sending is not None
    told = wait_until(
        lambda: found if (found := launcher._compute.ask(sending.task_id)).state != "pending" else None,
        deadline_s=60,
        what="the task's turn",
    )
    assert told.result is not None
    assert told.result["answer"]["state"] == "failed"
    assert starts(job) == 0
