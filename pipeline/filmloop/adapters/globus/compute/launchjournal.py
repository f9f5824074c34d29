"""What the launcher's journal holds: the jobs are elsewhere, and their folders cannot be seen from here.

<journal>/<job>/job.json         the job as it was given first; its presence makes the handle known
<journal>/<job>/attempt.json     the latest attempt: intent before it is sent, the service's ids after it
<journal>/<job>/cancel           somebody wants it to end, and why
<journal>/<job>/outcome.json     how it ended
<journal>/<job>/lock             held by the process that submits it
<journal>/endpoint-<id>.json     what is known about the endpoint
"""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from pydantic import Field

from filmloop.adapters.globus.compute.wire import TaskAnswer
from filmloop.adapters.local.held import hold, is_held
from filmloop.core.documents import Document, TrainJob
from filmloop.core.errors import DataError
from filmloop.core.fsio import atomic_write_bytes, create_json, disk_errors
from filmloop.ports.launcher import LaunchStatus

JOB, ATTEMPT, CANCEL, OUTCOME, LOCK = "job.json", "attempt.json", "cancel", "outcome.json", "lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Sending(Document):
    """One attempt of a job, as this side knows it.

    Attributes:
        attempt: 1 for the first.
        token: Tells this attempt from every other, at the endpoint too.
        group: Task group that it is sent with; '' if the service is to make one.
        task_id: The service's; '' until it has answered.
        submitted_utc: When it was sent.
        twins: Tasks of the same attempt that were sent after it, because it did not begin.
        running_utc: When it was first seen running.
        offline_utc: Since when the endpoint has been away; '' if it is there.
        earlier: Tasks of the job's earlier attempts, and those of this one that ended without having begun.
        lost: How the attempt was lost.
    """

    schema_version: Literal[1] = 1
    attempt: int
    token: str
    submitted_utc: str
    group: str = ""
    task_id: str = ""
    twins: tuple[str, ...] = ()
    running_utc: str = ""
    offline_utc: str = ""
    earlier: tuple[str, ...] = ()
    lost: TaskAnswer | None = None


class Endpoint(Document):
    """What is known about the endpoint, for as long as both sides stay as they are.

    Attributes:
        function_id: The function, as it is registered with the service.
        source: Digest of its text.
        group: A task group that the service made for us; training is sent with it. '' if it has to make one.
        group_utc: When.
        check_tasks: Tasks that were no training, in this group and those before.
        here: Versions on this side.
        options: Digest of what the site's templates are asked for.
        checked_utc: When the versions over there were looked at; '' if never.
        notes: Differences between the two sides that do not matter, or not yet.
    """

    schema_version: Literal[1] = 1
    function_id: str
    source: str
    group: str = ""
    group_utc: str = ""
    check_tasks: tuple[str, ...] = ()
    here: dict[str, str] = Field(default_factory=dict)
    options: str = ""
    checked_utc: str = ""
    notes: tuple[str, ...] = ()


class Entry:
    """The journal of one job.

    Attributes:
        folder: Where it is.
        handle: Its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.handle = folder, folder.name

    def turn(self) -> AbstractContextManager[int | None]:
        """Hold this around a submission; yields None while somebody else holds it."""
        return hold(self.folder / LOCK)

    def is_busy(self) -> bool:
        """Whether somebody submits the job right now."""
        return is_held(self.folder / LOCK)

    def job(self) -> TrainJob:
        """The job."""
        return TrainJob.read(self.folder / JOB)

    def sending(self) -> Sending | None:
        """The latest attempt; None before the first."""
        return Sending.read(self.folder / ATTEMPT) if (self.folder / ATTEMPT).exists() else None

    def write(self, sending: Sending) -> Sending:
        """Record an attempt, durably."""
        sending.write(self.folder / ATTEMPT)
        return sending

    def outcome(self) -> LaunchStatus | None:
        """How the job ended; None while it has not."""
        if not (self.folder / OUTCOME).exists():
            return None
        return TaskAnswer.read(self.folder / OUTCOME).as_status()

    def end(self, answer: TaskAnswer) -> LaunchStatus:
        """The job has ended; the first end that is recorded stays."""
        create_json(self.folder / OUTCOME, answer.as_json())
        return TaskAnswer.read(self.folder / OUTCOME).as_status()

    def cancel(self, why: str) -> None:
        """Somebody wants the job to end; the first reason stays."""
        if not (self.folder / CANCEL).exists():
            atomic_write_bytes(self.folder / CANCEL, why.encode())

    def cancelled(self) -> str:
        """Why the job is to end; '' if nobody wants that."""
        path = self.folder / CANCEL
        with disk_errors(path):
            return path.read_text() or "It was cancelled." if path.exists() else ""


class LaunchJournal:
    """All jobs that were given to the launcher.

    Args:
        root: Folder; made when the first job comes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, job: TrainJob) -> Entry:
        """The entry of a job, made if need be.

        Raises:
            DataError: another job of this name writes to another run folder.
            TransientError: the disk refuses.
        """
        entry = Entry(self.root / file_name(job.job_id))
        with disk_errors(entry.folder):
            entry.folder.mkdir(parents=True, exist_ok=True)
        if not create_json(entry.folder / JOB, job.as_json()) and entry.job().output_dir != job.output_dir:
            raise DataError(
                f"Job {job.job_id} was submitted before, with run folder {entry.job().output_dir}.",
                hint="Every job needs a name of its own.",
                ids={"job_id": job.job_id, "path": job.output_dir},
            )
        return entry

    def find(self, handle: str) -> Entry:
        """The entry behind a handle.

        Raises:
            DataError: there is none.
        """
        entry = Entry(self.root / file_name(handle))
        if not (entry.folder / JOB).is_file():
            raise DataError(
                f"No job {handle!r} was started from here.",
                hint="Submit it again; `filmloop history` lists the cycles and their jobs.",
                ids={"path": handle},
            )
        return entry

    def endpoint(self, endpoint: str) -> Endpoint | None:
        """What is known about an endpoint; None if nothing is, or nothing that this version can read."""
        path = self._endpoint_path(endpoint)
        try:
            return Endpoint.read(path) if path.exists() else None
        except DataError:  # all of it can be found out again
            return None

    def remember(self, endpoint: str, known: Endpoint) -> Endpoint:
        """Record what is known about an endpoint."""
        known.write(self._endpoint_path(endpoint))
        return known

    def sent(self) -> set[str]:
        """Ids of the tasks of all attempts."""
        all_ = [Sending.read(path) for path in self.root.glob(f"*/{ATTEMPT}")]
        return {task_id for sending in all_ for task_id in (sending.task_id, *sending.twins, *sending.earlier)}

    def _endpoint_path(self, endpoint: str) -> Path:
        return self.root / f"endpoint-{file_name(endpoint)}.json"


def file_name(job_id: str) -> str:
    """A file name for a job: its own name where that is one."""
    return job_id if _NAME.fullmatch(job_id) else f"job-{hashlib.sha256(job_id.encode()).hexdigest()[:24]}"
