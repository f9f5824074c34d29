"""Slurm's words: sbatch, srun, squeue, scancel, and sacct where the site has accounting. Tested with Slurm 22.05."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filmloop.adapters.batch.attempt import BATCH_OUT, Attempt
from filmloop.adapters.batch.commands import call, refusal
from filmloop.adapters.batch.dialect import Look
from filmloop.config.launchers import SlurmLauncher as Section
from filmloop.core.clock import epoch_s, utc_text
from filmloop.core.errors import ConfigError, TransientError

_PASSING = (
    "unable to contact",
    "timed out",
    "temporarily",
    "connection refused",
    "communication",
    "zero bytes",
    "authentication",  # munged is being restarted
    "munge",
    "slurm backup controller",
    "submitlimit",
    "submit limit",
    "in progress",
    "inactive or drain",  # a partition in maintenance
)
"""In what sbatch says when the same call may work later."""
_UNKNOWN = "invalid job id"
_CLOCKS_S = 60.0
"""The clocks of this machine and of the accounting may differ by so much."""
# Of squeue(1), JOB STATE CODES, and https://slurm.schedmd.com/job_state_codes.html. New versions have new words: what is in
# none of these is in the queue still, for a job that is called ended too early is submitted a second time.
_WAITING = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "EXPEDITING",
    "POWER_UP_NODE",
)  # fmt: skip
_BY_ITSELF = ("COMPLETED", "FAILED")
_INTERRUPTED = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL")
_TIME_LIMIT = ("TIMEOUT", "DEADLINE")


class SlurmDialect:
    """See `adapters.batch.dialect.Dialect`."""

    name = "Slurm"
    commands: tuple[str, ...] = ("sbatch", "srun", "squeue", "scancel")
    job_variable = "SLURM_JOB_ID"

    def __init__(self, section: Section) -> None:
        self._section = section

    def directives(self, *, name: str, folder: Path, time_limit_s: float) -> list[str]:
        """See `Dialect.directives`."""
        section = self._section
        wanted = {
            "job-name": name,
            "output": str(folder / BATCH_OUT).replace("%", "%%"),
            "open-mode": "append",
            "nodes": str(section.nodes),
            "ntasks-per-node": "1",
            "time": _hours(time_limit_s),
            # To the batch shell alone, which is the supervisor: it asks the ranks to save.
            "signal": f"B:TERM@{section.save_before_s:.0f}",
            "account": section.account,
            "qos": section.qos,
            "partition": section.partition,
            "constraint": section.constraint,
            "licenses": section.licenses,
            "gpus-per-node": str(section.gpus_per_node or ""),
            "cpus-per-task": str(section.cpus_per_node or ""),
        }
        lines = [f"--{key}={value}" for key, value in wanted.items() if value]
        return [f"#SBATCH {line}" for line in (*lines, "--requeue", *section.options)]

    def across_nodes(self, command: Sequence[str]) -> tuple[str, ...]:
        """See `Dialect.across_nodes`."""
        nodes = self._section.nodes
        # srun takes no CPUs over from sbatch since 22.05.
        cpus = (f"--cpus-per-task={self._section.cpus_per_node}",) if self._section.cpus_per_node else ()
        return ("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--kill-on-bad-exit=1", *cpus, *command)

    def stop_ranks(self) -> tuple[str, ...]:
        """See `Dialect.stop_ranks`. SIGTERM to srun itself would kill the ranks at once, without a checkpoint."""
        return ("scancel", "--signal=TERM", "$SLURM_JOB_ID")

    def submit(self, script: Path, *, lock: int) -> str:
        """See `Dialect.submit`."""
        done = call(("sbatch", "--parsable", str(script)), timeout_s=self._section.command_timeout_s, pass_fds=(lock,))
        if done.returncode != 0:
            raise refusal(done, passing=_PASSING)
        return done.stdout.strip().partition(";")[0]

    def test(self, script: Path) -> str:
        """See `Dialect.test`."""
        done = call(("sbatch", "--test-only", str(script)), timeout_s=self._section.command_timeout_s)
        if done.returncode != 0:
            raise refusal(done, passing=_PASSING)
        return " ".join((done.stderr or done.stdout).split())

    def find(self, attempt: Attempt) -> str | None:
        """See `Dialect.find`."""
        rows = self._rows(
            "squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", f"--name={attempt.name}",
            "--format=%i",
        )  # fmt: skip
        if not rows:
            since = utc_text(epoch_s(attempt.submitted_utc) - _CLOCKS_S)[:19]
            rows = self._accounting(f"--name={attempt.name}", f"--starttime={since}", "--format=JobIDRaw")
        return rows[0] if rows else None

    def look(self, batch_id: str) -> Look:
        """See `Dialect.look`. squeue knows an ended job for MinJobAge, 5 minutes by default; then sacct, if there is one.

        What sacct alone calls alive is not: slurmctld has lost it, or its end never came to the accounting ("runaway jobs").
        """
        if rows := self._rows("squeue", "--noheader", "--states=all", f"--jobs={batch_id}", "--format=%T|%r"):
            return _look_of_row(rows[0])
        if not (rows := self._accounting(f"--jobs={batch_id}", "--format=State%40,Reason")):
            return Look(phase="gone")
        look = _look_of_row(rows[0])
        return look if look.phase == "ended" else replace(look, phase="gone")

    def cancel(self, batch_id: str) -> None:
        """See `Dialect.cancel`."""
        done = call(("scancel", batch_id), timeout_s=self._section.command_timeout_s)
        # It says the same of a job that has ended and of one that it never knew.
        known = _UNKNOWN not in done.stderr.lower() and "already" not in done.stderr.lower()
        if done.returncode != 0 and known:
            raise TransientError(f"scancel: {' '.join(done.stderr.split())}", hint="Try again.")

    def _rows(self, *command: str) -> list[str]:
        done = call(command, timeout_s=self._section.command_timeout_s)
        if done.returncode == 0:
            return [row.strip() for row in done.stdout.splitlines() if row.strip()]
        if _UNKNOWN in done.stderr.lower():
            return []
        raise TransientError(
            f"{command[0]}: {' '.join(done.stderr.split()) or done.returncode}", hint="Slurm is away; try again."
        )

    def _accounting(self, *options: str) -> list[str]:
        """Rows of sacct; none where there is no sacct, or no accounting behind it."""
        try:
            done = call(
                ("sacct", "--noheader", "--parsable2", "--allocations", *options),
                timeout_s=self._section.command_timeout_s,
                environ={"TZ": "UTC"},  # --starttime is local time: west of Greenwich UTC lies in the future
            )
        except ConfigError:
            return []
        if done.returncode == 0:
            return [row.strip() for row in done.stdout.splitlines() if row.strip()]
        if "disabled" in done.stderr.lower():
            return []
        raise TransientError(
            f"sacct: {' '.join(done.stderr.split()) or done.returncode}", hint="The accounting is away; try again."
        )


def _look_of_row(row: str) -> Look:
    state, _, reason = row.partition("|")
    return look_of(state.strip(), "" if reason.strip() in ("None", "") else reason.strip())


def look_of(state: str, reason: str) -> Look:
    """What a state of squeue or sacct means: sacct says `CANCELLED by 1000`."""
    word = state.partition(" ")[0].rstrip("+")
    if word in _WAITING:
        return Look(phase="waiting", word=state, reason=reason)
    if word == "CANCELLED":
        return Look(phase="ended", word=state, reason=reason, end="cancelled")
    if word in _INTERRUPTED:
        return Look(phase="ended", word=state, reason=reason, end="interrupted")
    if word in _TIME_LIMIT:
        return Look(phase="ended", word=state, reason=reason, end="time limit")
    if word in _BY_ITSELF:
        return Look(phase="ended", word=state, reason=reason, end="by itself")
    return Look(phase="running", word=state, reason=reason)


def _hours(seconds: float) -> str:
    whole = int(-(-seconds // 1))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
