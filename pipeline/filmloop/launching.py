"""The training job of a cycle: written down, submitted, watched to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filmloop.config.schema import SiteConfig
from filmloop.core.documents import FileDigest, ModelChoice, ShardRef, TrainJob, WeightsRef
from filmloop.core.errors import (
    ConfigError,
    DataError,
    FilmloopError,
    TerminatedError,
    TrainingError,
    TransientError,
    VerificationError,
)
from filmloop.ports.launcher import Launcher, LaunchStatus

_log = logging.getLogger(__name__)

_ATTEMPTS = 4  # so often a job may be lost; it is submitted again and resumes from its checkpoint
_KINDS: dict[str, type[FilmloopError]] = {
    DataError.__name__: DataError,
    VerificationError.__name__: VerificationError,
    ConfigError.__name__: ConfigError,
    TransientError.__name__: TransientError,
    TerminatedError.__name__: TransientError,  # the trainer was told to stop, the cycle was not
}
_COLUMNS = {
    "step": "step {:,.0f}", "elapsed_s": "{:,.0f} s", "loss": "loss {:.5g}", "nll": "hold-out {:.5g}", "mse": "hold-out {:.5g}",
    "frames_per_s": "{:,.0f} frames/s", "learning_rate": "learning rate {:.3g}", "loader_idle_share": "idle share {:.3g}",
}  # fmt: skip
"""What of a trainer's progress is told, by its name there, in this order."""
_GRACE_S = 120.0  # on top of the launcher's own deadline, for a launcher that is lost itself


def chosen_model(config: SiteConfig, frame_shape: tuple[int, int]) -> ModelChoice:
    """The model of the site file, as a job names it."""
    return ModelChoice(name=config.model.name, frame_shape=frame_shape, hyper=config.model.hyper)


def training_job(
    config: SiteConfig,
    *,
    job_id: str,
    frame_shape: tuple[int, int],
    fresh: Sequence[ShardRef],
    replay: Sequence[ShardRef],
    base: WeightsRef | None,
    champion: WeightsRef | None,
    output_dir: Path,
    code_commit: str,
) -> TrainJob:
    """The document that the cluster gets; `output_dir` and all references are paths over there."""
    return TrainJob(
        job_id=job_id,
        model=chosen_model(config, frame_shape),
        fresh=tuple(fresh),
        replay=tuple(replay),
        base=base if config.training.warm_start else None,
        champion=champion,
        output_dir=str(output_dir),
        deadline_s=config.training.deadline_s,
        seed=config.training.seed,
        hyper=config.training.hyper,
        holdout=config.training.holdout,
        config_digest=config.digest(),
        code_commit=code_commit,
    )


def launch(
    launcher: Launcher,
    job: TrainJob,
    *,
    poll_s: float,
    keep_handle: Callable[[str], None],
    tell: Callable[[str], None],
) -> tuple[FileDigest, ...]:
    """Submit the job and poll until it ends; returns the files of its bundle.

    A job that was told to stop after it had got on is submitted again as often as it takes: queues end their jobs.
    The trainer's own error keeps its class; the message is its own too, and ends with the log's tail.

    Raises:
        TrainingError: it failed, was lost too often for no reason told, or passed its deadline.
        DataError: the trainer found damaged or missing data.
        ConfigError: the trainer found the job wrong, or the launcher cannot run here.
        TransientError: the launcher is away, or the trainer was stopped by something that passes as often as it was
            started; calling again goes on with the same job.
    """
    lost, furthest = 0, -1.0
    while lost < _ATTEMPTS:
        handle = launcher.submit(job)
        keep_handle(handle)
        status = _watch(launcher, handle, time.monotonic() + job.deadline_s + _GRACE_S, poll_s, tell)
        if status.state == "succeeded":
            return status.bundle_files
        if status.state == "failed":
            break
        step = (status.progress or {}).get("step", -1.0)
        if status.error == TerminatedError.__name__ and step > furthest:
            _log.warning("the training job was told to stop at step %d: %s", step, status.detail)
        else:
            lost += 1
            _log.warning("the training job was lost (attempt %d of %d): %s", lost, _ATTEMPTS, status.detail)
        furthest = max(furthest, step)
    raise _error_of(status, job)


def _error_of(status: LaunchStatus, job: TrainJob) -> FilmloopError:
    return _KINDS.get(status.error, TrainingError)(
        f"Training {status.state}: {status.detail or 'no reason given'}\n{status.log_tail}".rstrip(),
        hint=f"{status.hint} The whole log is {job.output_dir}/run.log. The champion stays as it is.".lstrip(),
        ids={"job_id": job.job_id},
    )


def _in_columns(progress: Mapping[str, float]) -> str:
    """The trainer's numbers, those first that say how far it is: a narrow terminal shows as many as it can."""
    known = [words.format(progress[key]) for key, words in _COLUMNS.items() if key in progress]
    return "  ".join(known + [f"{key} {value:,.6g}" for key, value in progress.items() if key not in _COLUMNS])


def _watch(launcher: Launcher, handle: str, end_s: float, poll_s: float, tell: Callable[[str], None]) -> LaunchStatus:
    """Poll until the job ends; the seconds that it waits in a queue are no training."""
    shown: dict[str, float] | None = None
    looked_s, said = time.monotonic(), ""
    while (status := launcher.poll(handle)).state in ("pending", "running"):
        now_s = time.monotonic()
        if status.state == "pending":
            # The launcher bounds the wait itself: a queue may be longer than any training.
            end_s += now_s - looked_s
            if status.detail != said:
                said = status.detail
                tell(said)
        looked_s = now_s
        if status.progress and status.progress != shown:
            shown = status.progress
            tell(_in_columns(shown))
        if time.monotonic() > end_s:
            launcher.cancel(handle)
            raise TrainingError(
                "Training passed its deadline and was cancelled.",
                hint="Raise training.deadline_s, or lower training.hyper.train_s, in the site file.",
            )
        time.sleep(poll_s)
    return status
