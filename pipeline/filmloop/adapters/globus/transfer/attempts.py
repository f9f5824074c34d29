"""What a move's journal holds of its attempts, beside the files that all movers have.

<journal>/<key>/attempt-0001.json          which tasks the first attempt has, and how far it came
<journal>/<key>/attempt-0001-task-0.json   the document of its first task, word for word; there before it is sent
<journal>/<key>/unswept                    something of the move may be left below `.incoming`
<journal>/<key>/over                       nobody submits it again
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from filmloop.adapters.globus.transfer.renames import Step
from filmloop.core.clock import utc_now
from filmloop.core.documents import Document
from filmloop.core.fsio import atomic_write_json, read_json

State = Literal["sent", "arrived", "placed", "failed"]


class SentTask(Document):
    """One task. Without a `task_id` its document may or may not have reached Transfer."""

    submission_id: str
    label: str
    deadline_utc: str
    items: tuple[int, ...]
    task_id: str = ""
    ended: bool = False


class Attempt(Document):
    """One attempt to get files across; what an earlier one brought is not sent again.

    Attributes:
        state: `sent`: tasks are at work; `arrived`: all files are there, audited; `placed`: they have their names;
            `failed`: it is over.
        giving_up: Why its tasks are being cancelled, if they are.
        steps: What gives the files their names at the cluster, once that is known.
        steps_done: So many of them are done; the next one may be.
    """

    schema_version: Literal[1] = 1
    number: int
    state: State = "sent"
    began_utc: str
    giving_up: str = ""
    steps: tuple[Step, ...] | None = None
    steps_done: int = 0
    tasks: tuple[SentTask, ...]

    @property
    def items(self) -> tuple[int, ...]:
        """Numbers of the items that this attempt sends."""
        return tuple(number for task in self.tasks for number in task.items)


class Attempts:
    """The attempts of one move."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def latest(self) -> Attempt | None:
        """The newest attempt, if there is one."""
        found = sorted(path for path in self._folder.glob("attempt-*.json") if "-task-" not in path.name)
        return Attempt.read(found[-1]) if found else None

    def open(self, tasks: Sequence[SentTask], documents: Sequence[dict[str, Any]]) -> Attempt:
        """Write a new attempt down: first its documents, then that it is there."""
        before = self.latest()
        attempt = Attempt(number=before.number + 1 if before else 1, began_utc=utc_now(), tasks=tuple(tasks))
        for number, document in enumerate(documents):
            atomic_write_json(self._document(attempt, number), document)
        attempt.write(self._path(attempt))
        return attempt

    def document(self, attempt: Attempt, number: int) -> dict[str, Any]:
        """The document of a task, as it was written down."""
        value: dict[str, Any] = read_json(self._document(attempt, number))
        return value

    def keep(self, attempt: Attempt, **changes: Any) -> Attempt:
        """Write down how the attempt has changed; returns it as it is now."""
        changed = attempt.model_copy(update=changes)
        changed.write(self._path(changed))
        return changed

    def keep_task(self, attempt: Attempt, number: int, **changes: Any) -> Attempt:
        """Write down how one of its tasks has changed; returns the attempt as it is now."""
        tasks = list(attempt.tasks)
        tasks[number] = tasks[number].model_copy(update=changes)
        return self.keep(attempt, tasks=tuple(tasks))

    def _path(self, attempt: Attempt) -> Path:
        return self._folder / f"attempt-{attempt.number:04d}.json"

    def _document(self, attempt: Attempt, number: int) -> Path:
        return self._folder / f"attempt-{attempt.number:04d}-task-{number}.json"
