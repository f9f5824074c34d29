"""Starts training through a batch system, with the promises of `ports.launcher`."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filmloop.adapters.batch.attempt import BACK, BATCH_OUT, OVER, SCRIPT, SUBMITTING, Attempt, Started, torchrun
from filmloop.adapters.batch.dialect import Dialect, Look
from filmloop.adapters.batch.script import render, time_limit_s
from filmloop.adapters.batch.settling import has_settled, has_spoken, is_back, look_again
from filmloop.adapters.batch.verdict import cancelled, success, verdict
from filmloop.adapters.batch.waiting import waited_s
from filmloop.adapters.local.held import hold, is_held
from filmloop.adapters.local.jobfolder import folder_for, folder_of
from filmloop.adapters.local.runfolder import CANCEL, ERROR, EXIT, JOB, last_metrics, log_tail
from filmloop.config.launchers import BatchLauncher as LauncherSection
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, FilmloopError, TransientError
from filmloop.core.fsio import atomic_write_bytes
from filmloop.core.retry import wait_until
from filmloop.ports.launcher import LaunchStatus

_END_S = 120.0
"""How long a cancelled job may take to end: Slurm kills what ignores SIGTERM after its KillWait, 30 s at most sites."""


class BatchLauncher:
    """A job in the queue of a batch system that trains on one or more nodes; see `ports.launcher.Launcher`.

    The handle is the absolute run folder, `job.output_dir`, on a file system that this machine and all nodes share. What
    happened is read from the files there first and from the queue second: a batch system forgets jobs, can be away, and
    does not know what an exit code of the trainer means. A job that was preempted or lost a node goes back into the queue
    by itself and goes on from its checkpoint; one that cannot is lost, and the next `submit` makes another.

    Args:
        section: The site file's `[launcher]`.
        dialect: The batch system.
        command: Runs on every node instead of torchrun and `filmloop.training.entry`, followed by the path of `job.json`.
        grace_s: Time that the trainer has for a checkpoint between SIGTERM and SIGKILL.

    Attributes:
        section: As given.
        dialect: As given.
    """

    def __init__(
        self,
        *,
        section: LauncherSection,
        dialect: Dialect,
        command: Sequence[str] | None = None,
        grace_s: float = 20.0,
    ) -> None:
        self.section, self.dialect, self._command, self._grace_s = section, dialect, command, grace_s
        self._seen: dict[str, tuple[float, Look]] = {}
        self._withdrawn_s: dict[Path, float] = {}

    def submit(self, job: TrainJob) -> str:
        """See `Launcher.submit`."""
        folder = folder_for(job)
        with hold(folder / SUBMITTING) as lock:
            if lock is not None:
                self._remember_id(folder)
                if self._needs_start(folder):
                    self._start(job, folder, lock)
        return str(folder)

    def poll(self, handle: str) -> LaunchStatus:
        """See `Launcher.poll`. A batch system that does not answer is no verdict: the job stands where it stood.

        Raises:
            DataError: no such handle.
            TransientError: the batch system is away for longer than the job may wait, or keeps a job that was withdrawn, or
                the disk refuses.
        """
        folder = folder_of(handle)
        if (status := success(folder)) is not None:
            return status
        attempt = Attempt.read(folder)
        if is_held(folder / SUBMITTING) and (attempt is None or not attempt.batch_id):
            if attempt is not None and self._is_overdue(attempt):
                raise TransientError(
                    f"{self.dialect.name} has not answered the submission of {attempt.submitted_utc}.",
                    hint=f"See what holds {folder / SUBMITTING}; the next call goes on with the same job.",
                )
            return LaunchStatus(state="pending", detail="It is being submitted.")
        return self._stands(folder, attempt)

    def cancel(self, handle: str) -> None:
        """See `Launcher.cancel`. Returns when the batch system says that all of the job has ended.

        Raises:
            DataError: no such handle.
            TransientError: the batch system is away, or the job does not end.
        """
        folder = folder_of(handle)
        if self.poll(handle).state in ("succeeded", "failed"):
            return
        self._withdraw(folder, "It was cancelled.")
        wait_until(
            lambda: None if self.poll(handle).state in ("pending", "running") else True,
            deadline_s=self._grace_s + _END_S,
            what=f"The end of job {folder.name}",
            hint=f"{self.dialect.name} was told to end it; look for its processes on the nodes.",
        )

    def _stands(self, folder: Path, attempt: Attempt | None) -> LaunchStatus:
        if attempt is None:
            return cancelled(folder) or LaunchStatus(state="lost", detail="It was never submitted.")
        runs = _runs(folder, attempt)
        try:
            batch_id = self._batch_id(folder, attempt)
            look = self._look(batch_id) if batch_id else Look(phase="gone")
        except TransientError as exc:
            if not runs and self._is_overdue(attempt):
                raise
            return _under_way(folder, "running" if runs else "pending", exc.message)
        where = f"{self.dialect.name} job {batch_id}"
        if look.phase in ("waiting", "running"):
            is_back(folder)
        if look.phase == "waiting":
            return self._waits(folder, attempt, f"{where} waits: {look.word} {look.reason}")
        if look.phase == "running":
            return _under_way(folder, "running", f"{where}: {look.word}")
        if batch_id and not has_spoken(folder):
            look_again(folder)
            if not has_spoken(folder) and not self._is_settled(folder, batch_id):
                return _under_way(folder, "running", f"{where} has ended, its files do not say how yet. {look.word}")
        return success(folder) or verdict(
            folder, look, where=where, began=_runs(folder, attempt), said=_last_line(folder / BATCH_OUT)
        )

    def _is_settled(self, folder: Path, batch_id: str) -> bool:
        return (folder / CANCEL).exists() or has_settled(folder, batch_id, self.section.settle_s)

    def _is_overdue(self, attempt: Attempt) -> bool:
        return time.time() - epoch_s(attempt.submitted_utc) > self.section.queue_wait_s

    def _waits(self, folder: Path, attempt: Attempt, detail: str) -> LaunchStatus:
        started = Started.read(folder) if _runs(folder, attempt) else None
        if waited_s(folder, attempt, started) > self.section.queue_wait_s:
            self._withdraw(
                folder, f"It waited {self.section.queue_wait_s:.0f} s in the queue and was withdrawn. {detail}"
            )
            since_s = self._withdrawn_s.setdefault(folder, time.monotonic())
            if time.monotonic() - since_s > _END_S:
                raise TransientError(
                    f"{self.dialect.name} was told to end a job {_END_S:.0f} s ago and keeps it: {detail}.",
                    hint="End it by hand. The next call goes on with the same job.",
                )
        return _under_way(folder, "pending", detail)

    def _withdraw(self, folder: Path, why: str) -> None:
        """Write down that the job is to end, then end it."""
        if not (folder / CANCEL).exists():
            atomic_write_bytes(folder / CANCEL, f"{why}\n".encode())
        attempt = Attempt.read(folder)
        if attempt is not None and (batch_id := self._batch_id(folder, attempt)):
            self._seen.pop(batch_id, None)
            self.dialect.cancel(batch_id)

    def _needs_start(self, folder: Path) -> bool:
        return success(folder) is None and self._stands(folder, Attempt.read(folder)).state == "lost"

    def _start(self, job: TrainJob, folder: Path, lock: int) -> None:
        """Intent first, then the submission, then its id: whoever is killed between them, `_remember_id` finds it."""
        before = Attempt.read(folder)
        if before is not None and before.batch_id:
            with suppress(FilmloopError):  # it has ended, or nobody knows it; never two at once all the same
                self.dialect.cancel(before.batch_id)
        limit_s = time_limit_s(self.section, job.deadline_s)
        token = secrets.token_hex(16)
        attempt = Attempt(
            attempt=before.attempt + 1 if before is not None else 1,
            token=token,
            name=f"fl-{hashlib.sha256(token.encode()).hexdigest()[:12]}",
            command=(*self.dialect.across_nodes(self._runner()), str(folder / JOB)),
            stop=self.dialect.stop_ranks(),
            threads=self.section.threads,
            deadline_s=job.deadline_s,
            save_after_s=max(1.0, limit_s - self.section.save_before_s),
            grace_s=self._grace_s,
            submitted_utc=utc_now(),
        )
        script = render(self.dialect, self.section, folder=folder, name=attempt.name, token=token, limit_s=limit_s)
        atomic_write_bytes(folder / SCRIPT, script.encode())
        for stale in (EXIT, ERROR, OVER, BACK):
            (folder / stale).unlink(missing_ok=True)
        attempt.write(folder)
        batch_id = self.dialect.submit(folder / SCRIPT, lock=lock)
        replace(attempt, batch_id=batch_id).write(folder)

    def _runner(self) -> tuple[str, ...]:
        if self._command is not None:
            return tuple(self._command)
        python = self.section.python or _this_python()
        return torchrun(python, nodes=self.section.nodes, processes_per_node=self.section.processes_per_node)

    def _batch_id(self, folder: Path, attempt: Attempt) -> str | None:
        """The id, from whoever knows it: this side's record, the job itself, the queue."""
        if attempt.batch_id:
            return attempt.batch_id
        started = Started.read(folder)
        if started is not None and started.token == attempt.token and started.batch_id:
            return started.batch_id
        return self.dialect.find(attempt)

    def _remember_id(self, folder: Path) -> None:
        attempt = Attempt.read(folder)
        if attempt is not None and not attempt.batch_id and (batch_id := self._batch_id(folder, attempt)):
            replace(attempt, batch_id=batch_id).write(folder)

    def _look(self, batch_id: str) -> Look:
        asked_s, look = self._seen.get(batch_id, (float("-inf"), Look(phase="gone")))
        if time.monotonic() - asked_s >= self.section.poll_s:
            look = self.dialect.look(batch_id)
            self._seen[batch_id] = (time.monotonic(), look)
        return look


def _runs(folder: Path, attempt: Attempt) -> bool:
    """Whether a supervisor of this attempt has ever started."""
    started = Started.read(folder)
    return started is not None and started.token == attempt.token


def _under_way(folder: Path, state: Literal["pending", "running"], detail: str) -> LaunchStatus:
    return LaunchStatus(state=state, detail=detail.strip(), log_tail=log_tail(folder), progress=last_metrics(folder))


def _this_python() -> str:
    import importlib.util
    import sys

    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "PyTorch is not installed here, and [launcher] python names no other interpreter.",
            hint="pip install 'filmloop[hpc]' into an environment on the cluster and name its python.",
        )
    return sys.executable


def _last_line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip().rpartition("\n")[2]
    return ""
