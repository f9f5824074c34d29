"""A cycle under way: what it works with, and the step that is done once however often it is begun."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.ledger import CycleRow, Ledger
from filmloop.ports.launcher import Launcher
from filmloop.ports.mover import Mover
from filmloop.ports.registry import Registry

Tell = Callable[[str, str], None]
"""Called with (step, text) as things happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleParts:
    """Everything a cycle works with; `filmloop.bootstrap` puts it together.

    Attributes:
        stream: The stream of frames to train on.
        frame_shape: (C, E) of its frames.
        cluster_root: The cluster's folder as a path of the cluster's own file system.
        code_commit: Version of this code, for the lineage.
        poll_s: Longest pause between two looks at a move or a job.
    """

    config: SiteConfig
    home: Home
    ledger: Ledger
    mover: Mover
    launcher: Launcher
    registry: Registry
    stream: str
    frame_shape: tuple[int, int]
    cluster_root: Path
    code_commit: str
    poll_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Cycle:
    """The cycle under way: its parts, its row in the journal, and whom to tell."""

    parts: CycleParts
    row: CycleRow
    tell: Tell

    @property
    def id(self) -> str:
        """The cycle's id."""
        return self.row.cycle_id

    @property
    def folder(self) -> Path:
        """Where it keeps its configuration, job, bundle, verdict and report."""
        return self.parts.home.cycles / self.id

    def step(self, name: str, text: str, do: Callable[[Cycle], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, unless the journal has its result already."""
        found = self.parts.ledger.begin_step(self.id, name)
        if found.result is not None:
            return found.result
        self.tell(name, text)
        begun_s = time.monotonic()
        try:
            result = do(self)
        except BaseException:
            self.parts.ledger.add_step_time(self.id, name, time.monotonic() - begun_s)
            raise
        self.parts.ledger.end_step(self.id, name, result, time.monotonic() - begun_s)
        return result

    def keep_handle(self, name: str, handle: str) -> None:
        """Journal what a remote call of a step returned."""
        self.parts.ledger.keep_handle(self.id, name, handle)

    def attempts(self) -> int:
        """How often the step that is not done was begun."""
        return max((step.attempts for step in self.parts.ledger.steps(self.id) if step.result is None), default=0)

    def forgive(self) -> None:
        """The attempt under way does not count: it says nothing of the step that a person has yet to log in."""
        self.parts.ledger.forgive_attempt(self.id)

    def results(self) -> dict[str, dict[str, Any]]:
        """Results of the steps that are done."""
        return {step.name: step.result for step in self.parts.ledger.steps(self.id) if step.result is not None}

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each step, cut off attempts included as far as they could be journalled."""
        return {step.name: round(step.seconds, 3) for step in self.parts.ledger.steps(self.id)}
