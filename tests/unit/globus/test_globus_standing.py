"""Where an attempt stands, with a service and an endpoint that say what the test has them say."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from filmloop import __version__
from filmloop.adapters.globus.compute import standing
from filmloop.adapters.globus.compute.client import Budget, Compute, Sent, Told
from filmloop.adapters.globus.compute.endpoint import Known
from filmloop.adapters.globus.compute.launcher import GlobusLauncher
from filmloop.adapters.globus.compute.launchjournal import Entry, LaunchJournal, Sending
from filmloop.adapters.globus.compute.standing import Standing
from filmloop.adapters.globus.compute.wire import TaskAnswer, TaskRequest
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.documents import ModelChoice, TrainJob
from filmloop.core.errors import ConfigError, TransientError
from filmloop.ports.launcher import LaunchStatus

TOKEN, OTHER = "a" * 32, "b" * 32
LONG_AGO = "2026-01-02T00:00:00.000000Z"


class Service:
    """Globus Compute and the endpoint behind it."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.sent: list[str] = []
        self.online = True
        self.refusal: Exception | None = None
        self.looked: TaskAnswer | None = None
        self.budget = Budget()

    def ask(self, task_id: str) -> Told:
        if task_id.startswith("look") and self.looked is not None:
            return done(self.looked)
        return self.told.get(task_id, Told(state="pending"))

    def is_online(self) -> bool:
        return self.online

    def send(self, request: TaskRequest, **_: Any) -> Sent:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append(request.do)
        return Sent(task_id=f"{request.do}-{len(self.sent)}", group="g")

    def times(self, do: str) -> int:
        return self.sent.count(do)


class Clock:
    """Both clocks of the standing go on by `passes` alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.passed_s = (time.time, time.monotonic), 0.0
        monkeypatch.setattr(standing.time, "time", lambda: self.real[0]() + self.passed_s)
        monkeypatch.setattr(standing.time, "monotonic", lambda: self.real[1]() + self.passed_s)

    def passes(self, seconds: float) -> None:
        self.passed_s += seconds


def answer(state: Any, token: str = TOKEN) -> TaskAnswer:
    return TaskAnswer(job_id="j1", state=state, token=token)


def done(said: TaskAnswer) -> Told:
    return Told(state="done", status="success", result={"answer": said.as_json()})


class Site:
    """A job that was sent once, and what stands for a launcher's part that watches it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.service, self.clock = Service(), clock
        job = TrainJob(
            job_id="j1", model=ModelChoice(name="m", frame_shape=(4, 8)), fresh=(), output_dir="/runs/j1",
            deadline_s=600.0,
        )  # fmt: skip
        self.entry: Entry = LaunchJournal(folder).open(job)
        self.entry.write(Sending(attempt=1, token=TOKEN, submitted_utc=utc_now(), task_id="train-0"))
        self.restart()

    def restart(self, **keys: Any) -> None:
        words: dict[str, Any] = {"endpoint": "0c9a0d5e-8d14-4a6f-9a36-0f5e2f0f1f11", "control": {"engine": "control"}}
        self.standing = Standing(
            section=LauncherSection(**{**words, **keys}),
            compute=cast(Compute, self.service),
            known=cast(Known, self.service),
            entry=self.entry,
            request=lambda do, sending: TaskRequest(
                do=cast(Any, do), python="", patience_s=1.0, job=self.entry.job(), attempt=sending.attempt,
                token=sending.token, filmloop=__version__,
            ),
        )  # fmt: skip

    @property
    def sending(self) -> Sending:
        found = self.entry.sending()
        assert found is not None
        return found

    def poll(self, after_s: float = 6.0) -> LaunchStatus:
        self.clock.passes(after_s)
        status = self.standing.now(self.sending)
        time.sleep(0.02)  # an errand is sent by a thread
        return status


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(standing, "_FIRST_S", 0.0)
    return Site(tmp_path, Clock(monkeypatch))


def until(site: Site, seen: Callable[[], bool]) -> None:
    for _ in range(20):
        site.poll()
        if seen():
            return
    raise AssertionError("it never came")


def test_only_its_own_start_starts_the_clock_of_an_attempt_and_waiting_again_stops_it(site: Site) -> None:
    site.service.looked = answer("running", OTHER)
    for _ in range(4):
        site.poll()
    assert site.sending.running_utc == ""
    site.service.looked = answer("running")
    until(site, lambda: site.sending.running_utc != "")
    site.service.looked = answer("waiting", "")
    until(site, lambda: site.sending.running_utc == "")


def test_an_attempt_that_found_its_batch_job_too_short_is_sent_again_and_not_lost(site: Site) -> None:
    site.service.looked = answer("waiting")
    site.service.told["train-0"] = done(answer("waiting"))
    assert site.poll().state == "pending"
    assert site.service.times("train") == 0, "not at once: the batch job that ends would take it again"
    until(site, lambda: len(site.sending.twins) == 1)
    assert (site.sending.attempt, site.sending.lost, site.service.times("train")) == (1, None, 1)
    for _ in range(5):
        site.poll()
    assert site.service.times("train") == 1
    site.service.told[site.sending.twins[0]] = done(answer("succeeded"))
    assert site.poll().state == "succeeded"


@pytest.mark.parametrize(("lost", "trains"), [("train-0", "twin"), ("twin", "train-0")])
def test_a_task_whose_worker_was_lost_does_not_lose_the_attempt_that_another_one_trains(
    site: Site, lost: str, trains: str
) -> None:
    site.entry.write(site.sending.model_copy(update={"twins": ("twin",)}))
    site.service.looked = answer("running")
    until(site, lambda: site.sending.running_utc != "")
    site.service.told[lost] = Told(state="failed", status="failed", failure="parsl: WorkerLost")
    for _ in range(5):
        assert site.poll().state == "running"
    assert site.sending.lost is None
    site.service.told[trains] = done(answer("succeeded"))
    assert site.poll().state == "succeeded"


def test_an_attempt_all_of_whose_tasks_were_lost_is_lost(site: Site) -> None:
    site.entry.write(site.sending.model_copy(update={"twins": ("twin",)}))
    for task_id in ("train-0", "twin"):
        site.service.told[task_id] = Told(state="failed", status="failed", failure="parsl: WorkerLost")
    status = site.poll()
    assert (status.state, "WorkerLost" in status.detail) == ("lost", True)


def test_what_the_run_folder_says_of_a_loss_counts_whoever_brings_it(site: Site) -> None:
    site.entry.write(site.sending.model_copy(update={"twins": ("twin",)}))
    site.service.told["twin"] = done(answer("lost"))
    assert site.poll().state == "lost"


def test_a_slow_login_node_is_given_longer_for_every_next_look(site: Site) -> None:
    site.poll()
    looks = [site.service.times("look")]
    for wait_s in (50.0, 20.0, 6.0, 100.0, 20.0, 6.0):
        site.poll(wait_s)
        looks.append(site.service.times("look"))
    # The first is dropped after 60 s, the second not before 120 s.
    assert looks == [1, 1, 2, 2, 2, 3, 3]


def test_a_job_that_runs_is_looked_at_less_often(site: Site) -> None:
    site.service.looked = answer("waiting")
    for _ in range(12):
        site.poll(5.1)
    waiting = site.service.times("look")
    site.service.looked = answer("running")
    until(site, lambda: site.sending.running_utc != "")
    before = site.service.times("look")
    for _ in range(12):
        site.poll(5.1)
    assert waiting >= 2 * (site.service.times("look") - before) > 0


def test_hours_before_a_restart_do_not_count_as_offline(site: Site) -> None:
    site.entry.write(site.sending.model_copy(update={"running_utc": utc_now(), "offline_utc": LONG_AGO}))
    site.service.online = False
    assert site.poll().state != "lost"
    assert time.time() - epoch_s(site.sending.offline_utc) < 60
    for _ in range(25):
        last = site.poll()
    assert (last.state, "offline" in last.detail) == ("lost", True)


def test_a_twin_that_cannot_be_sent_is_told_and_tried_ever_more_rarely(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.service.looked = answer("waiting")
    site.poll()
    site.poll()
    site.service.refusal, site.service.looked = TransientError("It is away."), None
    with caplog.at_level(logging.WARNING):
        for _ in range(60):  # six minutes: due after two and after four
            site.poll()
    assert len([line for line in caplog.messages if "cannot be sent once more" in line]) == 2
    monkeypatch.setattr(site.service.budget, "take", lambda **_: False)
    site.service.refusal = None
    for _ in range(60):
        site.poll()
    assert site.service.times("train") == 0, "it has the budget of short functions"


def test_looks_in_every_second_leave_room_for_a_twin(site: Site) -> None:
    site.restart(poll_s=0.1, silent_s=60.0)
    site.service.looked = answer("waiting")
    for _ in range(65):
        site.poll(1.0)
    assert site.service.times("train") == 1
    assert 6 <= site.service.times("look") <= 10, "two in 16 s"


@pytest.mark.parametrize("refusal", [TransientError("It is away."), ConfigError("Options are refused.")])
def test_a_lost_job_that_is_not_wanted_ends_though_nobody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    launcher = GlobusLauncher(section=LauncherSection(), globus=GlobusSection(), journal=tmp_path)
    entry = LaunchJournal(tmp_path).open(
        TrainJob(job_id="j1", model=ModelChoice(name="m", frame_shape=(4, 8)), fresh=(), output_dir="/runs/j1")
    )
    entry.write(Sending(attempt=1, token=TOKEN, submitted_utc=utc_now(), task_id="t", lost=answer("lost")))
    entry.cancel("Enough.")

    def send(*_: Any, **__: Any) -> Sent:
        raise refusal

    monkeypatch.setattr(launcher._known, "send", send)
    status = launcher.poll("j1")
    assert (status.state, status.detail) == ("failed", "Enough.")
