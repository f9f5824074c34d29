"""Where one attempt stands: the task's result, a look into the run folder, the endpoint's pulse, and our own clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from filmloop.adapters.globus.compute.client import Compute
from filmloop.adapters.globus.compute.endpoint import Known
from filmloop.adapters.globus.compute.errand import Errand
from filmloop.adapters.globus.compute.launchjournal import Entry, Sending
from filmloop.adapters.globus.compute.outcome import answer_of
from filmloop.adapters.globus.compute.wire import TaskAnswer, TaskRequest
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.errors import ConfigError, TransientError
from filmloop.ports.launcher import LaunchStatus

_log = logging.getLogger(__name__)
_SKEW_S = 30.0
"""How far the clocks of the two sides may differ."""
_SPARE_S = 75.0
"""What an attempt may take on top of its deadline: its grace, the last files, the way home."""

_LOOK_S = 60.0
"""A look that takes longer was lost with the process that it ran in, or the host is slow: the next one has twice the time."""
_LONGEST_LOOK_S = 960.0
_SELDOM = 4
"""A job that runs is looked at in every so manieth poll."""
_AGAIN_S = 30.0
"""So long after a task found that its batch job ends too soon, the attempt is sent once more."""
_FIRST_S, _FIRST_LOOK_S = 5.0, 0.2


class Standing:
    """Asks about one job, at most every `poll_s`; what a restart must know is in the journal.

    Args:
        section: The site file's `[launcher]`.
        compute: The service.
        known: About the endpoint.
        entry: The job's journal.
        request: Makes a request for an attempt: `look` or `cancel`.
    """

    def __init__(
        self,
        *,
        section: LauncherSection,
        compute: Compute,
        known: Known,
        entry: Entry,
        request: Callable[[str, Sending], TaskRequest],
    ) -> None:
        self._section, self._compute, self._known, self._entry = section, compute, known, entry
        self._request = request
        self._deadline_s = entry.job().deadline_s
        self._token = ""
        self._asked_s = self._answered_s = float("-inf")
        self._last = LaunchStatus(state="pending")
        self._errand: Errand | None = None
        self._twin: Errand | None = None
        self._cancels = 0
        self._waits_at_s = 0.0  # epoch: a look that was sent then found that it had not begun
        self._look_s, self._looked_s = _LOOK_S, float("-inf")  # how long a look may take; when the last one was sent
        self._failed_twins = 0
        self._was_offline = False  # the endpoint, when this process asked last
        self._idle_s = 0.0  # epoch: since when no task of the attempt is left

    def now(self, sending: Sending) -> LaunchStatus:
        """How the attempt stands.

        Raises:
            TransientError: the service is away for longer than the job may take.
        """
        if sending.token != self._token:
            self._token = sending.token
            self._forget()
        if time.monotonic() - self._asked_s < self._section.poll_s:
            return self._last
        self._asked_s = time.monotonic()
        try:
            self._last = self._ask(sending)
        except TransientError as exc:
            if self._is_overdue(sending):
                raise
            self._last = replace(self._last, detail=f"{exc.message} The job stands where it stood.")
        return self._last

    def _forget(self) -> None:
        self._asked_s = self._answered_s = float("-inf")
        self._last = LaunchStatus(state="pending", detail="It was submitted.")
        self._errand, self._twin, self._cancels, self._waits_at_s = None, None, 0, 0.0
        self._look_s, self._looked_s = _LOOK_S, float("-inf")
        self._failed_twins, self._was_offline, self._idle_s = 0, False, 0.0

    def _ask(self, sending: Sending) -> LaunchStatus:
        sending = self._with_twin(sending)
        for task_id in _tasks(sending):
            told = self._compute.ask(task_id)
            if told.state == "pending":
                continue
            answer = answer_of(told, self._entry.job().job_id)
            if answer.state not in ("absent", "waiting") and not _is_of_one_task(answer, sending):
                return self._judge(sending, answer)
            _log.info("task %s came to nothing: %s", task_id, answer.detail)
            sending = self._entry.write(sending.model_copy(update={"earlier": (*sending.earlier, task_id)}))
            self._idle_s = time.time()
        looked = self._run_errand(sending)
        if looked is not None and looked.state not in ("absent", "waiting"):
            return self._judge(sending, looked)
        if looked is not None and looked.state == "waiting" and sending.running_utc:
            sending = self._entry.write(sending.model_copy(update={"running_utc": ""}))
        if (gone := self._offline(sending)) is not None:
            return gone
        return self._under_way(self._entry.sending() or sending)

    def _judge(self, sending: Sending, answer: TaskAnswer) -> LaunchStatus:
        if answer.state in ("succeeded", "failed"):
            return self._entry.end(answer)
        if answer.state == "lost":
            return self._lose(sending, answer)
        if not sending.running_utc and answer.token == sending.token:  # another attempt has a clock of its own
            sending = self._entry.write(sending.model_copy(update={"running_utc": utc_now(), "offline_utc": ""}))
        if self._is_overdue(sending):
            return self._lose(sending, answer.model_copy(update={"detail": "Its deadline passed, and it did not end."}))
        return answer.as_status()

    def _lose(self, sending: Sending, answer: TaskAnswer) -> LaunchStatus:
        if why := self._entry.cancelled():
            words = {"state": "failed", "detail": why, "error": "", "hint": ""}
            return self._entry.end(answer.model_copy(update=words))
        lost = answer.model_copy(update={"state": "lost"})
        self._entry.write(sending.model_copy(update={"lost": lost}))
        return lost.as_status()

    def _run_errand(self, sending: Sending) -> TaskAnswer | None:
        """Send a short function that looks, or cancels, and take what the last one found."""
        answer = self._fetch(sending, self._errand) if self._errand is not None else None
        wanted = "cancel" if self._entry.cancelled() else "look" if self._section.control else ""
        busy_with = self._errand.what if self._errand is not None else ""
        if not wanted or busy_with == wanted or not self._may_send(wanted, sending):
            return answer
        request = self._request(wanted, sending)
        if wanted == "cancel":
            request = request.model_copy(update={"why": self._entry.cancelled()})
        self._errand = Errand(wanted)
        self._errand.start(lambda: self._known.send(request, use="errand").task_id)
        return answer or self._first_answer(sending)

    def _first_answer(self, sending: Sending) -> TaskAnswer | None:
        """Wait a moment for the first look, so that the first poll after a restart tells how things are."""
        end_s = time.monotonic() + _FIRST_S
        while self._answered_s < 0 and self._errand is not None and time.monotonic() < end_s:
            time.sleep(_FIRST_LOOK_S)
            if (answer := self._fetch(sending, self._errand)) is not None:
                return answer
        return None

    def _may_send(self, what: str, sending: Sending) -> bool:
        """Looks have a budget, and come seldom once the job runs; the first cancel has none."""
        if what == "cancel" and not self._cancels:
            self._cancels = 1
            return True
        now_s = time.monotonic()
        seldom = what == "look" and sending.running_utc and self._answered_s > 0
        if seldom and now_s - self._looked_s < _SELDOM * self._section.poll_s:
            return False
        if not self._known.budget.take(leave=1):  # looks, however frequent, leave room for a twin
            return False
        self._looked_s = now_s
        return True

    def _fetch(self, sending: Sending, errand: Errand) -> TaskAnswer | None:
        if not errand.task_id:
            if errand.error is not None:
                self._errand = None
                if not isinstance(errand.error, (TransientError, ConfigError)):
                    raise errand.error
                # The training may do well all the same.
                _log.info("cannot %s: %s", errand.what, errand.error.message)
            return None
        told = self._compute.ask(errand.task_id)
        if told.state == "pending":
            if errand.what == "look" and time.time() - errand.taken_s > self._look_s:
                _log.info("a look had no answer within %.0f s", self._look_s)
                self._errand, self._look_s = None, min(2 * self._look_s, _LONGEST_LOOK_S)
            return None
        self._errand = None
        answer = answer_of(told, self._entry.job().job_id)
        if told.state != "done" or "answer" not in (told.result or {}):
            _log.info("the %s came to nothing: %s", errand.what, answer.detail)
            return None
        if answer.state == "lost" and answer.token != sending.token:
            return None
        self._answered_s, self._was_offline = time.monotonic(), False
        self._look_s = max(_LOOK_S, 2 * (time.time() - errand.taken_s))
        if answer.state in ("absent", "waiting"):
            self._waits_at_s = errand.sent_s
            if errand.what == "cancel":  # the run folder is closed to it: it will never begin
                return answer.model_copy(update={"state": "failed", "detail": self._entry.cancelled()})
        return answer

    def _offline(self, sending: Sending) -> LaunchStatus | None:
        if time.monotonic() - self._answered_s < self._section.silent_s / 4:
            return None
        if self._compute.is_online():
            self._was_offline = False
            if sending.offline_utc:
                self._entry.write(sending.model_copy(update={"offline_utc": ""}))
            return None
        # What was so before a restart says nothing about the time in between.
        if not sending.offline_utc or not self._was_offline:
            sending = self._entry.write(sending.model_copy(update={"offline_utc": utc_now()}))
        self._was_offline = True
        away_s = time.time() - epoch_s(sending.offline_utc)
        if away_s <= self._section.silent_s:
            return replace(self._last, detail=f"The endpoint has been offline for {away_s:.0f} s.")
        detail = f"The endpoint has been offline for {away_s:.0f} s; it goes on from its checkpoint."
        return self._lose(sending, TaskAnswer(job_id=self._entry.job().job_id, state="lost", detail=detail))

    def _under_way(self, sending: Sending) -> LaunchStatus:
        """No word from over there but that it waits, or none at all: the clock decides."""
        waited_s = time.time() - epoch_s(sending.submitted_utc)
        wait_s = self._section.queue_wait_s
        if sending.running_utc or (waited_s > wait_s + _SKEW_S and not self._is_known_to_wait(sending)):
            if self._is_overdue(sending):
                detail = "Nothing was heard of it until long after its deadline."
                return self._lose(sending, TaskAnswer(job_id=self._entry.job().job_id, state="lost", detail=detail))
            return replace(
                self._last, state="running", detail=self._last.detail if sending.running_utc else "It may run."
            )
        if waited_s > wait_s + _SKEW_S:
            return self._withdraw(sending)
        self._send_twin(sending, waited_s)
        seen = "It waits for the endpoint or in its queue" if self._section.control else "It waits or runs"
        return replace(self._last, state="pending", detail=f"{seen}: Globus Compute task {sending.task_id}.")

    def _send_twin(self, sending: Sending, waited_s: float) -> None:
        """Send an attempt that does not begin once more, after `silent_s` and then ever more rarely.

        A user endpoint that dies takes what it had not begun with it, and nobody tells. A submission starts another one; the
        run folder makes one of all tasks of an attempt.
        """
        due_s = self._section.silent_s * 2 ** (len(sending.twins) + self._failed_twins)
        due = self._waits_at_s and waited_s > due_s
        if not _tasks(sending):  # each of them found its batch job too short
            due = time.time() - self._idle_s > _AGAIN_S * 2**self._failed_twins
        if due and self._twin is None and self._known.budget.take():
            request = self._request("train", sending)
            self._twin = Errand("train")
            self._twin.start(lambda: self._known.send(request, group=sending.group, use="errand").task_id)

    def _with_twin(self, sending: Sending) -> Sending:
        """The attempt with the task that was sent last, once the service has taken it."""
        twin = self._twin
        if twin is None or not (twin.task_id or twin.error is not None):
            return sending
        self._twin = None
        if not twin.task_id:
            self._failed_twins += 1
            if not isinstance(twin.error, (TransientError, ConfigError)):
                raise twin.error or RuntimeError("an errand ended without a word")
            _log.warning("the attempt cannot be sent once more: %s", twin.error.message)
            return sending
        self._failed_twins = 0
        return self._entry.write(sending.model_copy(update={"twins": (*sending.twins, twin.task_id)}))

    def _is_known_to_wait(self, sending: Sending) -> bool:
        return self._waits_at_s > epoch_s(sending.submitted_utc) + self._section.queue_wait_s + _SKEW_S / 2

    def _withdraw(self, sending: Sending) -> LaunchStatus:
        """Given up; the endpoint does not begin it any more either: it was told until when it may."""
        self._entry.cancel(
            f"It waited {self._section.queue_wait_s:.0f} s for the endpoint or in its queue and was withdrawn."
        )
        request = self._request("cancel", sending).model_copy(update={"why": self._entry.cancelled()})
        with suppress(TransientError, ConfigError):
            self._known.send(request)
        answer = TaskAnswer(job_id=self._entry.job().job_id, state="failed", detail=self._entry.cancelled())
        return self._entry.end(answer)

    def _is_overdue(self, sending: Sending) -> bool:
        """Whether the attempt must have ended by now, wherever it is."""
        begun = sending.running_utc or sending.submitted_utc
        wait_s = 0.0 if sending.running_utc else self._section.queue_wait_s + _SKEW_S
        return time.time() - epoch_s(begun) > wait_s + self._deadline_s + _SPARE_S


def _is_of_one_task(answer: TaskAnswer, sending: Sending) -> bool:
    """Whether a worker was lost of which the run folder says nothing, while the attempt may train in another task."""
    return answer.state == "lost" and not answer.token and len(_tasks(sending)) > 1


def _tasks(sending: Sending) -> list[str]:
    """The attempt's tasks that may still bring it to its end: those that did not begin are among the earlier ones."""
    return [task_id for task_id in (sending.task_id, *sending.twins) if task_id not in sending.earlier]
