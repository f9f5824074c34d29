"""How a training job is started on the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from filmloop.core.documents import FileDigest, TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchStatus:
    """Where a job stands.

    Attributes:
        state: `pending` waits in a queue; the launcher bounds that wait, it is not part of `deadline_s`. `lost` means that nobody knows: launch again with the same job, it resumes from its checkpoint.
        exit_code: Of the trainer, once it ended.
        detail: Why it failed or was lost, in words.
        error: Class of the trainer's error, a name of `core.errors`; '' if it left none or something else ended it.
        hint: What that error says to do.
        log_tail: Last lines of its log.
        progress: Last line of `metrics.jsonl`, e.g. {"step": 120, "loss": 0.16}.
        bundle_files: Every file of the bundle, `result.json` included, relative to `<output_dir>/bundle`, once the job
            succeeded: what the mover has to bring home.
    """

    state: Literal["pending", "running", "succeeded", "failed", "lost"]
    exit_code: int | None = None
    detail: str = ""
    error: str = ""
    hint: str = ""
    log_tail: str = ""
    progress: dict[str, float] | None = None
    bundle_files: tuple[FileDigest, ...] = ()


class Launcher(Protocol):
    """Starts `filmloop.training.entry` under torchrun. Submit and poll; nothing here waits for training."""

    def submit(self, job: TrainJob) -> str:
        """Start the job; returns a handle that survives a restart of the caller.

        Idempotent by `job.job_id`: a job that runs or has ended is not started again; one that was lost is, and lost is
        also what was killed by a signal or ended with a retryable error. A job that failed, passed its deadline or was
        cancelled stays so: make a new one.

        Raises:
            ConfigError: the launcher cannot run here at all.
            DataError: the run folder belongs to another job.
            TransientError: the service is away.
        """

    def poll(self, handle: str) -> LaunchStatus:
        """Where the job stands. The launcher enforces `job.deadline_s` by itself.

        Raises:
            DataError: no such handle.
            TransientError: the service is away for longer than the job may wait, or the disk refuses.
        """

    def cancel(self, handle: str) -> None:
        """End the job and every process it started; one that has ended stays as it is, one that was lost stays away.

        Raises:
            DataError: no such handle.
        """
