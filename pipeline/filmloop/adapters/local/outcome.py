"""What the end of a trainer means: exit code, error document and bundle in its run folder, wherever it ran."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from filmloop.adapters.local.runfolder import ATTEMPT_LINE, BUNDLE_RESULT, ERROR, Exit, last_metrics, log_tail
from filmloop.core.documents import FileDigest
from filmloop.core.errors import DataError, TerminatedError, TransientError
from filmloop.core.fsio import read_json
from filmloop.ports.launcher import LaunchStatus

_STARTERS = ("srun: ", "slurmstepd: ", ATTEMPT_LINE)


def status_of(ended: Exit, folder: Path) -> LaunchStatus:
    """What an orderly end means. Success takes exit code 0 and a finished bundle: a failed run must never ship.

    A deadline that comes while torchrun takes its ranks down, or in the time it gives them, finds a bundle that is as good:
    it is published in one step, when nothing is left to do.
    """
    error = trainer_error(folder)
    # The rank that ended first may only have lost the one that failed: the error document knows better.
    said = error.get("exit_code")
    code = said if ended.exit_code and isinstance(said, int) else ended.exit_code
    tail, progress = log_tail(folder), last_metrics(folder)
    well = code == 0 if ended.reason in ("ended", "terminated") else ended.reason == "deadline"
    if well and (folder / BUNDLE_RESULT).is_file():
        return LaunchStatus(
            state="succeeded", exit_code=0, log_tail=tail, progress=progress, bundle_files=bundle_files(folder)
        )
    by_itself = ended.reason == "ended" and ended.exit_code != 0
    is_lost = ended.reason == "terminated" or (by_itself and _is_retryable(error, code))
    told = TerminatedError.__name__ if ended.reason == "terminated" else ""
    name = error.get("error") or (TransientError.__name__ if code == TransientError.exit_code else "")
    return LaunchStatus(
        state="lost" if is_lost else "failed",
        exit_code=code,
        detail=_detail(ended, code, error, tail),
        error=str(name) if by_itself else told,
        hint=str(error.get("hint") or "") if by_itself else "",
        log_tail=tail,
        progress=progress,
    )


def _is_retryable(error: dict[str, Any], code: int) -> bool:
    """Whether the same job may work when it is started again.

    A rank that was killed says nothing; the ranks that it leaves say that they lost it, which is retryable. A trainer on
    a full disk cannot even leave its error: its exit code has to do.
    """
    if code in (TransientError.exit_code, TerminatedError.exit_code):
        return True
    return error.get("retryable") is True if error else _signal_of(code) is not None


def _signal_of(code: int) -> int | None:
    """The signal behind an exit code: negative from the kernel, 128 more than it from a shell or `training.torchrun`."""
    if code < 0:
        return -code
    return code - 128 if 128 < code < 128 + signal.NSIG else None


def _detail(ended: Exit, code: int, error: dict[str, Any], tail: str) -> str:
    if ended.reason == "cancelled":
        return "It was cancelled."
    if ended.reason == "deadline":
        return f"It was ended at its deadline, after {ended.wall_s:.0f} s; see training.deadline_s in the site file."
    if ended.reason == "terminated" or code == TerminatedError.exit_code:
        return "It was told to stop; started again, it goes on from its checkpoint."
    if ended.exit_code == 0:
        return f"It ended without an error, but left no {BUNDLE_RESULT}."
    if error.get("message"):
        return str(error["message"])
    if (number := _signal_of(code)) is not None:
        return f"A process of it was killed by signal {number} ({signal.strsignal(number)}); did the memory run out?"
    return f"It ended with exit code {ended.exit_code}; the last line of its log: {last_words(tail)}"


def last_words(tail: str) -> str:
    """The last line of the log that is the trainer's own; those who started it may have the last word."""
    lines = [line for line in tail.splitlines() if line.strip() and not line.startswith(_STARTERS)]
    return lines[-1] if lines else ""


def trainer_error(folder: Path) -> dict[str, Any]:
    """What the trainer left about its failure; empty if nothing readable."""
    if not (folder / ERROR).exists():
        return {}
    try:
        value = read_json(folder / ERROR)
    except DataError:  # the trainer was killed while it wrote; the log has to do
        return {}
    return value if isinstance(value, dict) else {}


def bundle_files(folder: Path) -> tuple[FileDigest, ...]:
    """Every file of the bundle, hashed."""
    bundle = (folder / BUNDLE_RESULT).parent
    return tuple(FileDigest.of(path, bundle) for path in sorted(bundle.rglob("*")) if path.is_file())
