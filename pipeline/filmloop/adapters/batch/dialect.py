"""How one batch system is spoken to, and how it sees a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from filmloop.adapters.batch.attempt import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the batch system sees a job.

    Attributes:
        phase: `gone` when it has forgotten the job, or never knew it.
        word: Its own word for the state, as PREEMPTED.
        reason: Why, where it says so.
        end: Once ended: by itself, by somebody's cancel, at the time limit, or by what happened to the nodes or to the
            queue (preemption, node failure, no memory): then the same job may work the next time.
    """

    phase: Literal["waiting", "running", "ended", "gone"]
    word: str = ""
    reason: str = ""
    end: Literal["", "by itself", "cancelled", "time limit", "interrupted"] = ""


class Dialect(Protocol):
    """A batch system's words. None of its methods waits for a job."""

    name: str
    """What people call it."""
    commands: tuple[str, ...]
    """The programs that have to be on the PATH."""
    job_variable: str
    """Environment variable that holds a job's id within the job."""

    def directives(self, *, name: str, folder: Path, time_limit_s: float) -> list[str]:
        """Lines of the batch script that the batch system reads, the site's own options last."""

    def across_nodes(self, command: Sequence[str]) -> tuple[str, ...]:
        """`command`, once on every node of the job."""

    def stop_ranks(self) -> tuple[str, ...]:
        """Within the job: sends SIGTERM to the ranks; empty where SIGTERM to `across_nodes` does that."""

    def submit(self, script: Path, *, lock: int) -> str:
        """Put the script into the queue; returns the job's id.

        The process that submits holds `lock` to its end, also when this one dies.

        Raises:
            ConfigError: it refuses such a job.
            TransientError: it is away.
        """

    def find(self, attempt: Attempt) -> str | None:
        """Id of the job that was submitted for the attempt; None if it knows none.

        Raises:
            TransientError: it is away.
        """

    def look(self, batch_id: str) -> Look:
        """Where the job stands.

        Raises:
            TransientError: it is away.
        """

    def cancel(self, batch_id: str) -> None:
        """End the job; one that has ended, or is not known, is left alone.

        Raises:
            TransientError: it is away, or refuses.
        """

    def test(self, script: Path) -> str:
        """Have the script judged without a submission; returns what was said, '' where that is not possible.

        Raises:
            ConfigError: it would refuse such a job.
            TransientError: it is away.
        """
