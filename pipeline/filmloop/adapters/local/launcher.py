"""Starts training on this machine, with the promises of `ports.launcher`."""

from __future__ import annotations

import importlib.util
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filmloop.adapters.local.held import hold, is_held
from filmloop.adapters.local.jobfolder import folder_for, folder_of
from filmloop.adapters.local.mark import kill_marked
from filmloop.adapters.local.outcome import status_of
from filmloop.adapters.local.runfolder import (
    ALIVE,
    CANCEL,
    ERROR,
    EXIT,
    JOB,
    LAUNCH,
    LOG,
    Exit,
    Launch,
    last_metrics,
    log_tail,
)
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.core.clock import utc_now
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.ports.launcher import LaunchStatus

_START_S = 60.0
"""The supervisor is in the background after 0.1 s; a loaded machine may take longer."""
_ENTRY = "filmloop.training.entry"


class LocalLauncher:
    """torchrun as a group of subprocesses that outlives its caller; see `ports.launcher.Launcher`.

    The handle is the absolute run folder, `job.output_dir`. Killing the supervisor kills the job. A job that was lost,
    of which a process was killed by a signal, or that ended with a retryable error, is started again by the next
    `submit` and goes on from its checkpoint. A job that failed otherwise, passed its deadline or was cancelled stays so:
    the caller makes a new one, with another `job_id`.

    With a `worker` the ranks are forked from a process that has torch loaded; without one, or when it cannot be had,
    torchrun is started, cold. The promises are the same, and `run.log` says which it was.

    Args:
        section: The site file's `[launcher]`.
        command: Runs instead of torchrun and `module`, followed by the path of `job.json`; always cold.
        module: Runs in every rank, followed by the path of `job.json`.
        grace_s: Time that the trainer has for a checkpoint between SIGTERM and SIGKILL.
        worker: The warm worker, if there may be one.
    """

    def __init__(
        self,
        *,
        section: LauncherSection,
        command: Sequence[str] | None = None,
        module: str = _ENTRY,
        grace_s: float = 10.0,
        worker: WarmWorker | None = None,
    ) -> None:
        self._section, self._command, self._module, self._grace_s = section, command, module, grace_s
        self._worker = worker if command is None else None

    def submit(self, job: TrainJob) -> str:
        """See `Launcher.submit`."""
        folder = folder_for(job)
        with hold(folder / ALIVE) as lock:
            if lock is not None and self._needs_start(folder):
                self._start(job, folder, lock)
        return str(folder)

    def poll(self, handle: str) -> LaunchStatus:
        """See `Launcher.poll`."""
        folder = folder_of(handle)
        launch = Launch.read(folder) if (folder / LAUNCH).exists() else None
        if is_held(folder / ALIVE):
            return LaunchStatus(state="running", log_tail=log_tail(folder), progress=last_metrics(folder))
        ended = Exit.read(folder)
        if ended is not None:
            return status_of(ended, folder)
        # Nothing of a lost attempt may go on writing beside its successor.
        left = kill_marked(launch.token) if launch is not None else 0
        return LaunchStatus(
            state="lost",
            detail=f"Its supervisor vanished; {left} processes that were left were killed.",
            log_tail=log_tail(folder),
            progress=last_metrics(folder),
        )

    def cancel(self, handle: str) -> None:
        """See `Launcher.cancel`. Returns when all processes have ended, after `grace_s` and a little at most.

        Raises:
            DataError: no such handle.
            TransientError: a process cannot be killed.
        """
        folder = folder_of(handle)
        if not is_held(folder / ALIVE) and not self._needs_start(folder):
            return
        with disk_errors(folder):
            (folder / CANCEL).touch()
        wait_until(
            lambda: None if is_held(folder / ALIVE) else True,
            deadline_s=self._grace_s + _START_S,
            what=f"The end of job {folder.name}",
            hint=f"Look for processes that hang: `fuser -v {folder / ALIVE}`.",
        )
        if self.poll(handle).state == "lost":
            Exit(exit_code=-9, reason="cancelled", wall_s=0.0, ended_utc=utc_now()).write(folder)

    def _needs_start(self, folder: Path) -> bool:
        ended = Exit.read(folder)
        return ended is None or status_of(ended, folder).state == "lost"

    def _start(self, job: TrainJob, folder: Path, lock: int) -> None:
        before = Launch.read(folder) if (folder / LAUNCH).exists() else None
        if before is not None:
            kill_marked(before.token)
        launch = Launch(
            attempt=before.attempt + 1 if before is not None else 1,
            token=secrets.token_hex(16),
            command=(*self._runner(), str(folder / JOB)),
            threads=self._section.threads,
            deadline_s=job.deadline_s,
            grace_s=self._grace_s,
            submitted_utc=utc_now(),
            module=self._module if self._command is None else "",
            ranks=self._section.processes,
        )
        for stale in (EXIT, ERROR):
            (folder / stale).unlink(missing_ok=True)
        launch.write(folder)
        if self._worker is not None:
            why = self._worker.hand_over(folder, lock)
            if not why:
                return
            _say(folder, f"cold start: {why}")
        _supervise(folder, lock)

    def _runner(self) -> tuple[str, ...]:
        if self._command is not None:
            return tuple(self._command)
        if importlib.util.find_spec("torch") is None:
            raise ConfigError(
                "PyTorch is not installed here, so nothing can be trained on this machine.",
                hint="pip install 'filmloop[hpc]', or `make install` in a checkout.",
            )
        ranks = f"--nproc-per-node={self._section.processes}"
        torchrun = (sys.executable, "-m", "filmloop.training.torchrun", "--standalone", ranks)
        return (*torchrun, "-m", self._module)


def _say(folder: Path, text: str) -> None:
    with disk_errors(folder), (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"filmloop: {utc_now()} {text}\n")


def _supervise(folder: Path, lock: int) -> None:
    """Start the supervisor. The lock travels down: from here on the job runs, whatever happens to this process."""
    ids = {"path": str(folder)}
    try:
        with disk_errors(folder), (folder / LOG).open("ab") as log:
            done = subprocess.run(
                [sys.executable, "-m", "filmloop.adapters.local.supervise", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                timeout=_START_S,
                check=False,
            )
    except subprocess.TimeoutExpired as exc:
        raise TransientError(
            f"The supervisor of {folder} did not start within {_START_S:.0f} s.",
            hint="Is the machine overloaded? Run the cycle again; it goes on where it stopped.",
            ids=ids,
        ) from exc
    if done.returncode != 0:
        raise ConfigError(
            f"The supervisor of {folder} did not start: {log_tail(folder, lines=1)}",
            hint="`filmloop site check` tests the installation.",
            ids=ids,
        )
