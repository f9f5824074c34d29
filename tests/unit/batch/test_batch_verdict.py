"""What the end of a batch job means: the table of `adapters.batch.verdict`, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.batch.dialect import Look
from filmloop.adapters.batch.verdict import success, verdict
from filmloop.adapters.local.runfolder import Exit
from filmloop.adapters.pbs.dialect import look_of as pbs_look
from filmloop.adapters.slurm.dialect import look_of as slurm_look
from filmloop.core.errors import TerminatedError, TrainingError, TransientError
from filmloop.core.fsio import atomic_write_json

ENDED = slurm_look("FAILED", "NonZeroExitCode")
PREEMPTED = slurm_look("PREEMPTED", "")
TIMEOUT = slurm_look("TIMEOUT", "TimeLimit")
CANCELLED = slurm_look("CANCELLED by 0", "")
GONE = Look(phase="gone")
BAD, LOST, TOLD = TrainingError("no"), TransientError("lost"), TerminatedError("told")


@pytest.mark.parametrize(
    ("look", "code", "reason", "error", "began", "state", "says"),
    [
        (PREEMPTED, None, "", None, True, "lost", "PREEMPTED"),
        (slurm_look("NODE_FAIL", ""), None, "", None, True, "lost", "NODE_FAIL"),
        (slurm_look("OUT_OF_MEMORY", ""), 137, "ended", None, True, "lost", "OUT_OF_MEMORY"),
        (slurm_look("OUT_OF_MEMORY", ""), 1, "ended", BAD, True, "failed", "no"),
        (PREEMPTED, 1, "terminated", BAD, True, "failed", "no"),
        (TIMEOUT, None, "", None, True, "failed", "saved nothing"),
        (TIMEOUT, 143, "terminated", TOLD, True, "lost", "told to stop"),
        (CANCELLED, 143, "terminated", TOLD, True, "failed", "by an operator"),
        (ENDED, 6, "ended", BAD, True, "failed", "no"),
        (ENDED, 3, "ended", LOST, True, "lost", "lost"),
        (ENDED, 1, "deadline", None, True, "failed", "deadline"),
        (ENDED, None, "", None, True, "lost", "supervisor vanished"),
        (ENDED, None, "", None, False, "failed", "module: command not found"),
        (GONE, None, "", None, False, "lost", "does not know it"),
        (GONE, None, "", None, True, "lost", "supervisor vanished"),
        (GONE, 6, "ended", BAD, True, "failed", "no"),
        (slurm_look("COMPLETED", ""), 0, "ended", None, True, "failed", "left no bundle"),
    ],
)
def test_a_verdict(
    tmp_path: Path, look: Look, code: int | None, reason: Any, error: Any, began: bool, state: str, says: str
) -> None:
    if code is not None:
        Exit(exit_code=code, reason=reason, wall_s=1.0, ended_utc="").write(tmp_path)
    if error is not None:
        atomic_write_json(tmp_path / "error.json", error.as_dict())
    status = verdict(tmp_path, look, where="Slurm job 7", began=began, said="module: command not found")
    assert (status.state, says in status.detail) == (state, True), status.detail
    assert success(tmp_path) is None


def test_only_exit_code_0_and_a_bundle_are_a_success(tmp_path: Path) -> None:
    Exit(exit_code=0, reason="ended", wall_s=1.0, ended_utc="").write(tmp_path)
    assert success(tmp_path) is None, "no bundle"
    (tmp_path / "bundle").mkdir()
    atomic_write_json(tmp_path / "bundle/result.json", {})
    done = success(tmp_path)
    assert done is not None
    assert done.state == "succeeded"


@pytest.mark.parametrize(
    ("state", "phase", "end"),
    [
        ("PENDING", "waiting", ""),
        ("REQUEUE_HOLD", "waiting", ""),
        ("COMPLETING", "running", ""),
        ("SUSPENDED", "running", ""),
        ("STOPPED", "running", ""),
        ("SPECIAL_EXIT", "waiting", ""),
        ("EXPEDITING", "waiting", ""),
        ("A_WORD_OF_SLURM_30", "running", ""),
        ("COMPLETED", "ended", "by itself"),
        ("BOOT_FAIL", "ended", "interrupted"),
        ("CANCELLED by 1000", "ended", "cancelled"),
        ("CANCELLED+", "ended", "cancelled"),
        ("TIMEOUT", "ended", "time limit"),
    ],
)
def test_a_state_of_slurm(state: str, phase: str, end: str) -> None:
    look = slurm_look(state, "")
    assert (look.phase, look.end) == (phase, end)


@pytest.mark.parametrize(
    ("job", "phase", "end"),
    [
        ({"job_state": "Q"}, "waiting", ""),
        ({"job_state": "H"}, "waiting", ""),
        ({"job_state": "R"}, "running", ""),
        ({"job_state": "E"}, "running", ""),
        ({"job_state": "S"}, "running", ""),
        ({"job_state": "Y"}, "running", ""),
        ({"comment": "no state"}, "running", ""),
        ({"job_state": "F", "Exit_status": 0}, "ended", "by itself"),
        ({"job_state": "F", "Exit_status": 6}, "ended", "by itself"),
        ({"job_state": "F", "Exit_status": 271}, "ended", "cancelled"),
        ({"job_state": "F"}, "ended", "cancelled"),
        ({"job_state": "F", "Exit_status": -11}, "ended", "interrupted"),
        ({"job_state": "F", "Exit_status": 265}, "ended", "interrupted"),
        ({"job_state": "F", "Exit_status": 271, "comment": "job exceeded walltime"}, "ended", "time limit"),
        ({"job_state": "F", "Exit_status": -29, "substate": 93}, "ended", "time limit"),
        ({"job_state": "F", "Exit_status": 143, "substate": 91}, "ended", "cancelled"),
        ({"job_state": "F", "Exit_status": 143, "comment": "Job run and terminated by root@h"}, "ended", "cancelled"),
        ({"job_state": "F", "comment": "Not Running: walltime and terminated"}, "ended", "cancelled"),
        ({"job_state": "F", "substate": 93, "comment": "Job run at Mon"}, "ended", "interrupted"),
    ],
)
def test_a_state_of_pbs(job: dict[str, Any], phase: str, end: str) -> None:
    look = pbs_look(job)
    assert (look.phase, look.end) == (phase, end)
