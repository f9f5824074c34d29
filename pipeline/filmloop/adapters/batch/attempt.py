"""The files of a run folder that the launcher, its batch script and the supervisor on the first node share.

    job.json      the job as it was given first
    batch.json    the latest attempt: what its supervisor runs, and the batch system's id once that is known
    batch.sh      its batch script: `sbatch batch.sh` or `qsub batch.sh` by hand does the same
    submitting    locked while somebody submits
    started.json  the latest start of an attempt; a requeued job starts again with the same attempt
    cancel        somebody wants the job to end, and why
    exit.json     how the latest start ended
    over.json     since when the queue calls the job ended
    back.json     since when a job that had started waits in the queue again
    run.log       output of the batch script and of every process below it
    batch.out     what the batch system itself has to say

`error.json`, `metrics.jsonl` and `bundle/` are the trainer's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from filmloop.core.errors import DataError
from filmloop.core.fsio import atomic_write_json, read_json

BATCH, SCRIPT, SUBMITTING, STARTED, BATCH_OUT = "batch.json", "batch.sh", "submitting", "started.json", "batch.out"
OVER, BACK = "over.json", "back.json"

HOST, PORT, RUN = "{host}", "{port}", "{run}"
"""Stand in `Attempt.command` for what is known on the first node only: its name, a free port, an id of this start."""


class _Record:
    """A dataclass that is a JSON file of the run folder."""

    _file: str

    def write(self, folder: Path) -> None:
        """Write durably."""
        atomic_write_json(folder / self._file, asdict(self))  # type: ignore[call-overload]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read back; None if there is none.

        Raises:
            DataError: damaged.
        """
        path = folder / cls._file
        if not path.exists():
            return None
        value = read_json(path)
        try:
            return cls(**{key: _frozen(value[key]) for key in _names(cls)})
        except (TypeError, KeyError) as exc:
            raise DataError(f"{path} is damaged: {exc!r}.", ids={"path": str(folder)}) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(_Record):
    """One submission.

    Attributes:
        attempt: 1 for the first.
        token: In the environment of every process of this attempt, and of no other.
        name: Of the job in the queue; tells this attempt from every other job.
        command: What the supervisor runs.
        stop: Asks the ranks to save and end; empty: SIGTERM to the command does.
        threads: OMP_NUM_THREADS of it.
        deadline_s: Wall time after which the supervisor ends it.
        save_after_s: Wall time after which the supervisor has it saved, for the time limit comes near.
        grace_s: Time between SIGTERM and SIGKILL.
        submitted_utc: When.
        batch_id: The batch system's; '' until it is known.
    """

    attempt: int
    token: str
    name: str
    command: tuple[str, ...]
    stop: tuple[str, ...]
    threads: int
    deadline_s: float
    save_after_s: float
    grace_s: float
    submitted_utc: str
    batch_id: str = ""

    _file = BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Record):
    """That an attempt runs, or did.

    Attributes:
        token: The attempt's.
        batch_id: The batch system's id, as the job itself knows it.
        host: First node.
        started_utc: When.
    """

    token: str
    batch_id: str
    host: str
    started_utc: str

    _file = STARTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Over(_Record):
    """That the queue calls a job ended, or has forgotten it.

    Attributes:
        batch_id: The batch system's id.
        seen_utc: When that was seen first.
    """

    batch_id: str
    seen_utc: str

    _file = OVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Back(_Record):
    """That a job which had started waits in the queue again.

    Attributes:
        started_utc: The start after which it was seen waiting.
        seen_utc: When that was seen first.
    """

    started_utc: str
    seen_utc: str

    _file = BACK


def torchrun(python: str, *, nodes: int, processes_per_node: int) -> tuple[str, ...]:
    """Trains with one torchrun on each node, which meet at the first; the path of `job.json` follows."""
    together = (
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={HOST}:{PORT}",
        f"--rdzv-id={RUN}",
    )
    return (python, "-m", "filmloop.training.torchrun", *together, "-m", "filmloop.training.entry")


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in fields(cls)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
