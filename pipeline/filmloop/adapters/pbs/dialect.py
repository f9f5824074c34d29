"""PBS Professional's words: qsub, mpiexec, qstat, qselect, qdel. Never met a real PBS: tested with `filmloop.testing.pbs` only.

Options and the JSON of `qstat -f -F json` are those of the PBS Professional reference guide and the man pages of qstat and
qselect; what an end looks like is that of OpenPBS' source (`svr_setjob_histinfo` and `update_job_finish_comment`).
"""

from __future__ import annotations

import getpass
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filmloop.adapters.batch.attempt import BATCH_OUT, Attempt
from filmloop.adapters.batch.commands import call, refusal
from filmloop.adapters.batch.dialect import Look
from filmloop.config.launchers import PbsLauncher as Section
from filmloop.core.errors import TransientError

_PASSING = (
    "cannot connect",
    "connection refused",
    "timed out",
    "busy",
    "shutting down",
    "protocol error",  # the server went away in the middle
    "no free connections",
    "connection table full",
    "temporarily",
    # How many jobs may be queued, and a queue that is closed for maintenance.
    "would exceed",
    "maximum number of jobs",
    "queue is not enabled",
)
"""In what qsub says when the same call may work later: OpenPBS' pbs_messages.c."""
_UNKNOWN = ("unknown job", "job has finished", "invalid state")
_NO_HISTORY = "not configured to maintain job history"
_WANTED = re.compile(r'"(job_state|substate|Exit_status|comment)"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')
"""What is asked of a job, in a document that is no JSON: qstat writes an environment of `N=005` or `P=\\'` as it stands
(openpbs/openpbs#1255, #2541)."""
# job_state of qstat(1B): E is exiting, F finished; B and M belong to arrays and moved jobs.
# What is none of these runs, for all that is known.
_WAITING = tuple("HQTWM")
_ENDED = tuple("FX")
_SIGNAL_BASE = 256
"""Exit_status of a job that a signal ended is this much above the signal."""
_SIGTERM, _KILL_WALLTIME = 271, -29
"""What a shell leaves that heeds no SIGTERM, of qdel or at the end of the walltime; and what PBS writes for the latter itself."""
_TERMINATED, _FAILED = 91, 93
"""Substates of a finished job: deleted, whatever its shell made of the SIGTERM; ended badly for another reason."""


class PbsDialect:
    """See `adapters.batch.dialect.Dialect`."""

    name = "PBS"
    commands: tuple[str, ...] = ("qsub", "qstat", "qselect", "qdel")
    job_variable = "PBS_JOBID"

    def __init__(self, section: Section) -> None:
        self._section = section

    def directives(self, *, name: str, folder: Path, time_limit_s: float) -> list[str]:
        """See `Dialect.directives`."""
        section = self._section
        select = ":".join(part for part in (f"select={section.nodes}", section.select) if part)
        wanted = [
            f"-N {name}",
            f"-o {folder / BATCH_OUT}",
            "-j oe",
            # May be started again, after a preemption or when a node was lost.
            "-r y",
            f"-l {select}",
            f"-l walltime={_hours(time_limit_s)}",
        ]
        given = {
            "-l place=": section.place,
            "-l filesystems=": section.filesystems,
            "-A ": section.account,
            "-q ": section.queue,
        }
        wanted += [f"{key}{value}" for key, value in given.items() if value]
        return [f"#PBS {line}" for line in (*wanted, *section.options)]

    def across_nodes(self, command: Sequence[str]) -> tuple[str, ...]:
        """See `Dialect.across_nodes`."""
        nodes = str(self._section.nodes)
        return (*(word.replace("{nodes}", nodes) for word in self._section.mpiexec), *command)

    def stop_ranks(self) -> tuple[str, ...]:
        """See `Dialect.stop_ranks`: mpiexec passes SIGTERM on."""
        return ()

    def submit(self, script: Path, *, lock: int) -> str:
        """See `Dialect.submit`."""
        done = call(("qsub", str(script)), timeout_s=self._section.command_timeout_s, pass_fds=(lock,))
        if done.returncode != 0:
            raise refusal(done, passing=_PASSING)
        return done.stdout.strip()

    def test(self, script: Path) -> str:
        """See `Dialect.test`: qsub has nothing of the kind."""
        return ""

    def find(self, attempt: Attempt) -> str | None:
        """See `Dialect.find`. Among one's own jobs: a list of all is long, and as broken as the most broken job in it."""
        done = self._with_ended("qselect", "-u", getpass.getuser(), "-N", attempt.name)
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise TransientError(f"qselect: {said}", hint="PBS is away; try again.")
        return next(iter(done.stdout.split()), None)

    def look(self, batch_id: str) -> Look:
        """See `Dialect.look`. Ended jobs are shown for as long as the site keeps their history."""
        job = self._job(batch_id)
        return Look(phase="gone") if job is None else look_of(job)

    def cancel(self, batch_id: str) -> None:
        """See `Dialect.cancel`."""
        done = call(("qdel", batch_id), timeout_s=self._section.command_timeout_s)
        if done.returncode != 0 and not any(words in done.stderr.lower() for words in _UNKNOWN):
            raise TransientError(f"qdel: {' '.join(done.stderr.split())}", hint="Try again.")

    def _with_ended(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """What the command says with `-x`; where no history is kept, which is the default, that gets no job at all, and exit code 0."""
        done = call((command, "-x", *words), timeout_s=self._section.command_timeout_s)
        if _NO_HISTORY in done.stderr.lower():
            done = call((command, *words), timeout_s=self._section.command_timeout_s)
        return done

    def _job(self, batch_id: str) -> dict[str, Any] | None:
        done = self._with_ended("qstat", "-f", "-F", "json", batch_id)
        if done.returncode != 0 and any(words in done.stderr.lower() for words in _UNKNOWN[:1]):
            return None
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}, no JSON"
        if done.returncode != 0:
            raise TransientError(f"qstat: {said}", hint="PBS is away; try again.")
        try:
            found = json.loads(done.stdout)
        except ValueError:
            found = {"Jobs": {batch_id: _picked(done.stdout)}}
        jobs = found.get("Jobs", {}) if isinstance(found, dict) else None
        if not isinstance(jobs, dict) or jobs.get(batch_id) == {}:
            raise TransientError(f"qstat: {said}", hint="PBS is away; try again.")
        job: dict[str, Any] | None = jobs.get(batch_id)
        return job


def look_of(job: dict[str, Any]) -> Look:
    """What qstat's document of a job means."""
    state, comment = str(job.get("job_state", "")), str(job.get("comment", ""))
    if state in _WAITING:
        return Look(phase="waiting", word=state, reason=comment)
    if state not in _ENDED:
        return Look(phase="running", word=state, reason=comment)
    status, substate = job.get("Exit_status"), job.get("substate")
    word = f"{state} {status}".strip() if status is not None else state
    lowered = comment.lower()
    if substate == _TERMINATED or re.search(r" and terminated( by |$)", lowered):
        return Look(phase="ended", word=word, reason=comment, end="cancelled")
    if status == _KILL_WALLTIME or "walltime" in lowered:
        return Look(phase="ended", word=word, reason=comment, end="time limit")
    if status is None and substate == _FAILED:
        # Its node is lost, and it could not be started again: PBS writes no exit status.
        return Look(phase="ended", word=word, reason=comment, end="interrupted")
    if status is None or status == _SIGTERM:
        # One that was deleted in the queue has no exit status.
        return Look(phase="ended", word=word, reason=comment, end="cancelled")
    if isinstance(status, int) and (status < 0 or status == _SIGNAL_BASE + 9):
        # Below 0 are the troubles of PBS itself: a node that failed, a job that could not be started.
        return Look(phase="ended", word=word, reason=comment, end="interrupted")
    return Look(phase="ended", word=word, reason=comment, end="by itself")


def _picked(text: str) -> dict[str, Any]:
    """Of a single job, what is asked of it; empty if it is not there."""
    return {key: value[1:-1] if value[0] == '"' else int(value) for key, value in _WANTED.findall(text)}


def _hours(seconds: float) -> str:
    whole = int(-(-seconds // 1))
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
