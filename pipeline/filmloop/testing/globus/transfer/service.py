"""What Transfer holds, and which tasks it works on: three transfers and three deletions of each identity at a time."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from filmloop.core.fsio import atomic_write_json
from filmloop.testing.globus.hub import Hub
from filmloop.testing.globus.transfer.collection import Collection
from filmloop.testing.globus.transfer.task import Task

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Settings:
    """How the service behaves; a control route changes it."""

    bytes_per_s: float | None = None
    """Of each task; None: as fast as the machine copies."""
    file_s: float = 0.0
    """What every file costs beside its bytes."""
    retry_s: float = 0.2
    """A file that failed is tried again so much later."""
    slots: int = 3
    """Transfers, and as many deletions, of an identity that are worked on at a time."""
    pending_limit: int = 100
    """Tasks of an identity that have not ended."""
    page: int = 100
    """Lines of a page of results. [choice]"""


class Service:
    """Collections and tasks; `hub.lock` guards them."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.settings = hub, Settings()
        self.collections: dict[str, Collection] = {}
        self.tasks: dict[str, Task] = {}
        self.submission_ids: set[str] = set()
        self._working: set[str] = set()
        self._folder = hub.state / "transfer"

    def resume(self) -> None:
        """Take up what the state folder holds."""
        for path in sorted((self._folder / "collections").glob("*.json")):
            self.add(Collection.of(json.loads(path.read_text(encoding="utf-8"))))
        for path in sorted((self._folder / "tasks").glob("*.json")):
            task = Task.of(json.loads(path.read_text(encoding="utf-8")))
            self.tasks[task.task_id] = task
        if self._ids.exists():
            self.submission_ids.update(self._ids.read_text(encoding="ascii").split())
        self.schedule()

    @property
    def _ids(self) -> Path:
        return self._folder / "submission_ids"

    def add(self, collection: Collection) -> None:
        """Serve a collection, or serve it otherwise."""
        with self.hub.lock:
            self.collections[collection.id] = collection
            (
                self.hub.book.guest_collections.add
                if collection.kind == "guest"
                else self.hub.book.guest_collections.discard
            )(collection.id)
            atomic_write_json(self._folder / "collections" / f"{collection.id}.json", collection.as_json())

    def new_submission_id(self) -> str:
        """An identifier that a document may bear."""
        value = str(uuid.uuid4())
        with self.hub.lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.submission_ids.add(value)
            with self._ids.open("a", encoding="ascii") as out:
                out.write(value + "\n")
        return value

    def find(self, owner: str, submission_id: str) -> Task | None:
        """The task that a submission made."""
        with self.hub.lock:
            for task in self.tasks.values():
                if (task.owner, task.submission_id) == (owner, submission_id):
                    return task
        return None

    def pending(self, owner: str) -> int:
        """Tasks of an identity that have not ended."""
        with self.hub.lock:
            return sum(task.owner == owner and not task.ended for task in self.tasks.values())

    def accept(self, task: Task) -> None:
        """Keep a task and work on it when its turn comes."""
        with self.hub.lock:
            self.tasks[task.task_id] = task
            self.keep(task)
        self.schedule()

    def keep(self, task: Task) -> None:
        """Write a task down."""
        with self.hub.lock:
            atomic_write_json(self._folder / "tasks" / f"{task.task_id}.json", task.as_json())

    def schedule(self) -> None:
        """Start what has a slot."""
        with self.hub.lock:
            for task in sorted(self.tasks.values(), key=lambda task: task.request_s):
                if task.ended or task.task_id in self._working or self._busy(task) >= self.settings.slots:
                    continue
                self._working.add(task.task_id)
                threading.Thread(target=self._work, args=(task,), name=f"task-{task.task_id}", daemon=True).start()

    def _busy(self, task: Task) -> int:
        working = (self.tasks[task_id] for task_id in self._working)
        return sum((each.owner, each.type) == (task.owner, task.type) for each in working)

    def _work(self, task: Task) -> None:
        from filmloop.testing.globus.transfer.copying import TransferWork
        from filmloop.testing.globus.transfer.deleting import DeleteWork

        try:
            (TransferWork if task.type == "TRANSFER" else DeleteWork)(self, task).run()
        except Exception as exc:
            _log.exception("task %s", task.task_id)
            with self.hub.lock:
                task.end("FAILED", "INTERNAL_ERROR", f"{type(exc).__name__}: {exc}")
        finally:
            with self.hub.lock:
                self._working.discard(task.task_id)
                self.keep(task)
            self.schedule()
