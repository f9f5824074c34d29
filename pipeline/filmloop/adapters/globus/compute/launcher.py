"""Starts training at an endpoint of Globus Compute, with the promises of `ports.launcher`."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.globus.compute.client import Compute, Sent
from filmloop.adapters.globus.compute.endpoint import Known
from filmloop.adapters.globus.compute.launchjournal import Entry, LaunchJournal, Sending
from filmloop.adapters.globus.compute.standing import Standing
from filmloop.adapters.globus.compute.wire import TaskAnswer, TaskRequest
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.core.clock import utc_now
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, FilmloopError, TransientError
from filmloop.ports.launcher import LaunchStatus

_log = logging.getLogger(__name__)
_END_S = 60.0
"""How much longer than its grace a cancelled job may take to end, with all that is between here and there."""
_LOOK_S = 0.2


class GlobusLauncher:
    """One function, sent by its text, starts torchrun at the cluster's endpoint; see `ports.launcher.Launcher`.

    The handle names an entry of the journal. Who decides is the run folder over there: its lock lets one training run,
    whichever task brought it, and its files say how it ended. So a job may be sent twice, when the answer to a
    submission was lost or the endpoint was gone for too long; it is never trained twice. The task's result and a short
    function (`[launcher.control]`) that looks into the folder bring the same words home; the first to come counts.

    Args:
        section: The site file's `[launcher]`.
        globus: The site file's `[globus]`.
        journal: Folder for the journal.
        command: Runs instead of torchrun and `filmloop.training.entry`, followed by the path of `job.json`.
        grace_s: Time that the trainer has for a checkpoint between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        *,
        section: LauncherSection,
        globus: GlobusSection,
        journal: Path,
        command: Sequence[str] = (),
        grace_s: float = 20.0,
    ) -> None:
        self._section, self._command, self._grace_s = section, tuple(command), grace_s
        self._journal = LaunchJournal(journal)
        self._compute = Compute(section, globus)
        self._known = Known(section, self._compute, self._journal)
        self._standing: dict[str, Standing] = {}

    def submit(self, job: TrainJob) -> str:
        """See `Launcher.submit`. Comes back when the service has taken the task, which may take half a minute."""
        if not self._section.endpoint:
            raise ConfigError(
                "[launcher] endpoint is empty.", hint="`globus-compute-endpoint list` on the cluster tells it."
            )
        entry = self._journal.open(job)
        with entry.turn() as mine:
            if mine is not None and self._needs_start(entry):
                self._start(entry)
        return entry.handle

    def poll(self, handle: str) -> LaunchStatus:
        """See `Launcher.poll`. A service that does not answer is no verdict: the job stands where it stood."""
        entry = self._journal.find(handle)
        if (ended := entry.outcome()) is not None:
            return ended
        sending = entry.sending()
        if sending is None or not sending.task_id:
            if entry.is_busy():
                return LaunchStatus(state="pending", detail="It is being submitted.")
            return self._lost(entry, TaskAnswer(job_id=handle, state="lost", detail="Its submission was cut off."))
        if sending.lost is not None:
            return self._lost(entry, sending.lost)
        return self._stands(entry, sending)

    def cancel(self, handle: str) -> None:
        """See `Launcher.cancel`. Returns when the endpoint says that all has ended, or when it can say nothing.

        Raises:
            DataError: no such handle.
            AuthError: a person must log in.
        """
        entry = self._journal.find(handle)
        if self.poll(handle).state in ("succeeded", "failed"):
            return
        entry.cancel("It was cancelled.")
        end_s = time.monotonic() + self._grace_s + _END_S
        while self.poll(handle).state in ("pending", "running") and time.monotonic() < end_s:
            time.sleep(_LOOK_S)

    def _stands(self, entry: Entry, sending: Sending) -> LaunchStatus:
        if entry.handle not in self._standing:
            self._standing[entry.handle] = Standing(
                section=self._section,
                compute=self._compute,
                known=self._known,
                entry=entry,
                request=lambda do, attempt: self._request(entry.job(), attempt, do),
            )
        return self._standing[entry.handle].now(sending)

    def _lost(self, entry: Entry, answer: TaskAnswer) -> LaunchStatus:
        """Lost, unless it is not wanted any more: the endpoint hears that too, in case something of it is left."""
        if not (why := entry.cancelled()):
            return answer.as_status()
        sending = entry.sending()
        if sending is not None:
            with suppress(TransientError, ConfigError):
                self._send(entry, sending, "cancel")
        return entry.end(answer.model_copy(update={"state": "failed", "detail": why, "error": "", "hint": ""}))

    def _needs_start(self, entry: Entry) -> bool:
        if entry.outcome() is not None or entry.cancelled():
            return False
        sending = entry.sending()
        return sending is None or not sending.task_id or sending.lost is not None

    def _start(self, entry: Entry) -> None:
        """Intent first, then the submission, then its ids: whoever is killed between them, the next call goes on."""
        known = self._known.get()
        before = entry.sending()
        if before is not None and before.lost is None and (found := self._find(before)):
            entry.write(before.model_copy(update={"task_id": found}))
            return
        if before is not None and before.lost is None:
            # It may have been taken: sent again under the same token, the two are one to the run folder.
            sending = before.model_copy(update={"submitted_utc": utc_now(), "group": known.group})
        else:
            sending = Sending(
                attempt=before.attempt + 1 if before is not None else 1,
                token=secrets.token_hex(16),
                group=known.group,
                submitted_utc=utc_now(),
                earlier=(*before.earlier, before.task_id, *before.twins) if before is not None else (),
            )
        entry.write(sending)
        try:
            sent = self._send(entry, sending, "train")
        except ConfigError as exc:
            if exc.ids.get("status") != "404":
                raise
            _log.info("the service forgot the function or the task group: %s", exc.message)
            sending = entry.write(sending.model_copy(update={"group": self._known.renew().group}))
            sent = self._send(entry, sending, "train")
        entry.write(sending.model_copy(update={"task_id": sent.task_id, "group": sent.group}))
        self._known.keep_group(sent.group)

    def _find(self, sending: Sending) -> str:
        """The task of a submission whose answer was lost; '' if it was never taken, or cannot be told from others."""
        if not sending.group:
            return ""
        try:
            strangers = set(self._compute.tasks_of(sending.group)) - self._journal.sent() - self._known.own_tasks()
        except FilmloopError as exc:
            _log.info("the task group of a lost submission cannot be had: %s", exc.message)
            return ""
        return strangers.pop() if len(strangers) == 1 else ""

    def _send(self, entry: Entry, sending: Sending, do: str) -> Sent:
        return self._known.send(self._request(entry.job(), sending, do), group=sending.group)

    def _request(self, job: TrainJob, sending: Sending, do: str) -> TaskRequest:
        return self._known.request(job, sending, do, command=self._command, grace_s=self._grace_s)
