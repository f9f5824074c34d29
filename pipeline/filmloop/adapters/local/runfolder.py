"""The files of a run folder that launcher and supervisor share.

    job.json      the job as it was given first
    launch.json   the latest attempt: what the supervisor runs
    alive         locked while a supervisor lives
    cancel        somebody wants the job to end
    exit.json     how the latest attempt ended
    claim.<n>     attempt n has its supervisor: only one of a warm and a cold one may have it
    run.log       output of the supervisor and of every process below it

`error.json`, `metrics.jsonl` and `bundle/` are the trainer's.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filmloop.core.errors import DataError
from filmloop.core.fsio import atomic_write_json, disk_errors, read_json

JOB, LAUNCH, ALIVE, CANCEL, EXIT, LOG = "job.json", "launch.json", "alive", "cancel", "exit.json", "run.log"
ERROR, METRICS, BUNDLE_RESULT = "error.json", "metrics.jsonl", "bundle/result.json"
ATTEMPT_LINE = "filmloop: attempt "
"""How the supervisor's own line in the log begins; a command that fails at once may have written before it."""

Reason = Literal["ended", "deadline", "cancelled", "terminated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One attempt.

    Attributes:
        attempt: 1 for the first.
        token: In the environment of every process of this attempt, and of no other.
        command: What the supervisor runs.
        threads: OMP_NUM_THREADS of it.
        deadline_s: Wall time after which the supervisor ends it.
        grace_s: Time between SIGTERM and SIGKILL.
        submitted_utc: When.
        module: What a warm worker runs in every rank instead of the command; '' if the command cannot be done warm.
        ranks: How many ranks.
    """

    attempt: int
    token: str
    command: tuple[str, ...]
    threads: int
    deadline_s: float
    grace_s: float
    submitted_utc: str
    module: str = ""
    ranks: int = 1

    def write(self, folder: Path) -> None:
        """Write durably."""
        atomic_write_json(folder / LAUNCH, asdict(self))

    def claim(self, folder: Path) -> bool:
        """Whether the caller is the first to ask, and so the one to supervise this attempt."""
        with disk_errors(folder):
            try:
                os.close(os.open(folder / f"claim.{self.attempt}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
            except FileExistsError:
                return False
        return True

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """Read back.

        Raises:
            DataError: absent or damaged.
        """
        value = read_json(folder / LAUNCH)
        try:
            return cls(**{**value, "command": tuple(value["command"])})
        except (TypeError, KeyError) as exc:
            raise DataError(f"{folder / LAUNCH} is damaged: {exc}.", ids={"path": str(folder)}) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How an attempt ended.

    Attributes:
        exit_code: Of the command; negative for a signal.
        reason: `ended` by itself; `terminated` when the supervisor itself was told to stop.
        wall_s: How long it ran.
        ended_utc: When.
    """

    exit_code: int
    reason: Reason
    wall_s: float
    ended_utc: str

    def write(self, folder: Path) -> None:
        """Write durably."""
        atomic_write_json(folder / EXIT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Exit | None:
        """Read back; None if the attempt has not ended in an orderly way.

        Raises:
            DataError: damaged.
        """
        if not (folder / EXIT).exists():
            return None
        try:
            return cls(**read_json(folder / EXIT))
        except TypeError as exc:
            raise DataError(f"{folder / EXIT} is damaged: {exc}.", ids={"path": str(folder)}) from exc


def log_tail(folder: Path, *, lines: int = 30, max_bytes: int = 8192) -> str:
    """The last lines of the log; '' if there is none."""
    path = folder / LOG
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - max_bytes))
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def last_metrics(folder: Path) -> dict[str, float] | None:
    """The numbers of the last complete line of `metrics.jsonl`; None before the first."""
    path = folder / METRICS
    if not path.exists():
        return None
    with path.open("rb") as metrics:
        metrics.seek(max(0, path.stat().st_size - 8192))
        complete, _, _ = metrics.read().rpartition(b"\n")
    try:
        line = json.loads(complete.rpartition(b"\n")[2] or b"null")
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    return {key: float(value) for key, value in line.items() if isinstance(value, int | float)}
