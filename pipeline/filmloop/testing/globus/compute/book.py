"""What the service remembers: endpoints, functions, task groups, tasks. On disk, so that a new client finds its results."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from filmloop.core.fsio import atomic_write_json, read_json

MISSED = 3
"""An endpoint is offline after so many heartbeats that did not come."""


@dataclass(kw_only=True)
class Endpoint:
    """A core endpoint, which a facility registers, or a user endpoint, which it starts on demand (`parent`)."""

    id: str
    name: str
    owner: str
    parent: str = ""
    registered: dict[str, Any] = field(default_factory=dict)
    locked_until: float = 0.0


@dataclass(kw_only=True)
class Function:
    """A function by value, as the SDK packed it."""

    id: str
    owner: str
    registered: dict[str, Any]


@dataclass(kw_only=True)
class Group:
    """Tasks that a client follows together."""

    id: str
    owner: str
    queue: bool = False
    tasks: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Task:
    """One call of a function, and what came of it."""

    id: str
    group: str
    endpoint: str
    function: str
    status: str = "waiting-for-ep"
    result: str = ""
    details: dict[str, Any] | None = None
    completed_at: float = 0.0

    def document(self) -> dict[str, Any]:
        """What the service says about it."""
        said: dict[str, Any] = {"task_id": self.id, "status": self.status, "task_group_id": self.group}
        if self.completed_at:
            said |= {"completion_t": str(self.completed_at), "details": self.details}
            said["result" if self.status == "success" else "exception"] = self.result
        return said


Kept = TypeVar("Kept", Endpoint, Function, Group, Task)


class Shelf(Generic[Kept]):
    """Records of one kind, a file each."""

    def __init__(self, folder: Path, kind: type[Kept]) -> None:
        self._folder, self._held = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            record = kind(**read_json(path))
            self._held[record.id] = record

    _held: dict[str, Kept]

    def get(self, key: object) -> Kept | None:
        """The record, or None."""
        return self._held.get(str(key))

    def keep(self, record: Kept) -> Kept:
        """Write it, new or changed."""
        self._held[record.id] = record
        atomic_write_json(self._folder / f"{record.id}.json", asdict(record))
        return record

    def drop(self, key: object) -> None:
        """Forget it."""
        self._held.pop(str(key), None)
        (self._folder / f"{key}.json").unlink(missing_ok=True)

    def all(self) -> list[Kept]:
        """Every record."""
        return list(self._held.values())


@dataclass(kw_only=True)
class Pulse:
    """What an endpoint last said of itself; it does not outlive the service."""

    heard_at: float
    period_s: float
    state: dict[str, Any]

    def alive(self) -> bool:
        """Whether it still counts as online."""
        stopped = self.period_s <= 0 or self.state.get("active") is False
        return not stopped and time.monotonic() - self.heard_at <= MISSED * self.period_s


class Book:
    """All of it; threads hold `lock` to read and change it, and wait on `heard` for heartbeats."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.heard = threading.Condition(self.lock)
        self.endpoints = Shelf(folder / "endpoints", Endpoint)
        self.functions = Shelf(folder / "functions", Function)
        self.groups = Shelf(folder / "groups", Group)
        self.tasks = Shelf(folder / "tasks", Task)
        self.pulses: dict[str, Pulse] = {}
        self.failures: dict[str, str] = {}

    def beat(self, endpoint: str, state: dict[str, Any]) -> None:
        """A heartbeat came, or the news that a user endpoint did not start.

        [choice] Such news is no heartbeat: a core endpoint's child that fails to become a user endpoint sends it in the
        name of the core endpoint, too, which runs on.
        """
        with self.heard:
            self.heard.notify_all()
            if "error" in state:
                self.failures[endpoint] = str(state["error"])
                return
            period_s = float(state.get("heartbeat_period", 30))
            self.pulses[endpoint] = Pulse(heard_at=time.monotonic(), period_s=period_s, state=state)

    def online(self, endpoint: str) -> bool:
        """Whether it was heard of lately, and does not go."""
        with self.lock:
            pulse = self.pulses.get(endpoint)
            return pulse is not None and pulse.alive()
