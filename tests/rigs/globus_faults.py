"""What a fault scenario of the Globus mover needs: files, a site, and the proof that nothing was lost or doubled."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem, MoveStatus
from filmloop.testing.contracts.mover import ended, files_below
from filmloop.testing.globus.hosted import Hosted
from filmloop.testing.globus.transfer import rig as transfer
from rigs.globus_mover import GlobusSite

GET_TASK = {"route": "GET /v0.10/task/<task_id>"}
POST_TRANSFER = {"route": "POST /v0.10/transfer"}
RENAME = {"route": "POST /v0.10/operation/endpoint/<collection_id>/rename"}
SHARD = {"s/a.zarr/zarr.json": b"{}", "s/a.zarr/c": bytes(range(256)) * 1200, "s/a.json": b"the manifest"}
"""A shard in small: metadata, 300 kB of frames, the manifest last."""
T = TypeVar("T")


@dataclass(kw_only=True)
class Scenario:
    """One move of a few files, with something that goes wrong on the way."""

    site: GlobusSite
    direction: Direction = "to_cluster"
    files: dict[str, bytes] = field(default_factory=lambda: dict(SHARD))
    key: str = "k1"

    def __post_init__(self) -> None:
        for name, data in self.files.items():
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(data)

    @property
    def hosted(self) -> Hosted:
        """The services."""
        return self.site.hosted

    @property
    def source(self) -> Path:
        """Where the files come from."""
        return self.site.edge if self.direction == "to_cluster" else self.site.cluster

    @property
    def target(self) -> Path:
        """Where they go."""
        return self.site.cluster if self.direction == "to_cluster" else self.site.edge

    @property
    def items(self) -> list[MoveItem]:
        """What is to be moved."""
        return self.items_of(self.files)

    @staticmethod
    def items_of(files: dict[str, bytes]) -> list[MoveItem]:
        """The items of files, bound for `there/`."""
        return [
            MoveItem(
                source_path=name,
                target_path=f"there/{name}",
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
            for name, data in files.items()
        ]

    def start(self, mover: GlobusMover) -> str:
        """Submit."""
        return mover.submit(self.direction, self.items, key=self.key)

    def run(self, mover: GlobusMover | None = None, **limits: Any) -> MoveStatus:
        """Submit, as a cycle does, and poll to the end; a new mover unless there is one."""
        mover = mover or self.site.make(**limits)
        return ended(mover, self.start(mover))

    def fault(self, name: str, **how: Any) -> None:
        """Let something go wrong."""
        self.hosted.fault(name, **how)

    def fired(self, name: str) -> int:
        """How often it did."""
        return self.hosted.fired(name)

    def until(self, name: str, times: int = 1) -> None:
        """Wait until a fault has fired."""
        self.wait(lambda: self.fired(name) >= times, f"fault {name}")

    def wait(self, true: Callable[[], bool], what: str) -> None:
        """Wait until something is true."""
        wait_until(lambda: true() or None, deadline_s=30, what=what, first_s=0.01, cap_s=0.05)

    def check(self, *, tasks: int = 1, transferred: int | None = None) -> None:
        """All files are there, whole, and nothing else; the sources are as they were.

        Args:
            tasks: How many transfers it took.
            transferred: How many files those sent in all; None: each file once.
        """
        assert files_below(self.target) == {f"there/{name}" for name in self.files}
        for name, data in self.files.items():
            assert (self.target / "there" / name).read_bytes() == data, f"{name} is not what was sent"
            assert (self.source / name).read_bytes() == data
        left = [path for path in self.target.rglob("*") if path.is_file() and ".incoming" in path.parts]
        # What was replaced goes with the next deletion.
        assert [path for path in left if ".replaced-" not in str(path)] == [], "files lie about that nobody needs"
        found = self.site.tasks()
        assert len(found) == tasks, [task["label"] for task in found]
        assert all(task["status"] in ("SUCCEEDED", "FAILED") for task in found), "a task goes on that nobody waits for"
        expected = len(self.files) if transferred is None else transferred
        assert sum(task["files_transferred"] for task in found) == expected

    def nothing_arrived(self) -> None:
        """No file has its name at the receiving side."""
        assert files_below(self.target) == set()


def timed(what: Callable[[], T]) -> tuple[T, float]:
    """The result, and the seconds that it took."""
    began = time.monotonic()
    return what(), time.monotonic() - began


def resume(scenario: Scenario, task: dict[str, Any], **what: Any) -> None:
    """An operator, or a fresh login, lets a task go on."""
    transfer.change(scenario.hosted, task["task_id"], **what)
