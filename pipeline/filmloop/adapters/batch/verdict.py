"""What the end of a batch job means, from the trainer's files first and the batch system's word second.

| files | batch system | verdict |
|---|---|---|
| exit code 0 and a bundle | whatever | succeeded |
| `cancel` | whatever | failed: cancelled |
| exit: deadline | whatever | failed; succeeded if its bundle was published in the last moment |
| whatever | cancelled by somebody else | failed: cancelled |
| an error that a retry does not mend | whatever | failed, with that error |
| whatever | preempted, node failed, no memory | lost: submit again |
| exit: told to stop, checkpoint written | whatever | lost: submit again |
| no exit | time limit | failed: it did not even save |
| exit code, error.json | ended by itself | as for a local run: `adapters.local.outcome` |
| started, no exit, also after `settle_s` | ended, or forgotten | lost: the supervisor was killed |
| not started, also after `settle_s` | ended | failed: the batch script itself went wrong |
| not started | forgotten, or never known | lost: submit again |
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from filmloop.adapters.batch.dialect import Look
from filmloop.adapters.local.outcome import last_words, status_of, trainer_error
from filmloop.adapters.local.runfolder import CANCEL, Exit, last_metrics, log_tail
from filmloop.ports.launcher import LaunchStatus


def success(folder: Path) -> LaunchStatus | None:
    """That the job has succeeded; None if not, or not yet. It stays so whatever becomes of it in the queue."""
    ended = Exit.read(folder)
    if ended is None or ended.exit_code != 0:
        return None
    status = status_of(ended, folder)
    return status if status.state == "succeeded" else None


def cancelled(folder: Path) -> LaunchStatus | None:
    """That somebody of us wanted the end; None if nobody did."""
    if not (folder / CANCEL).exists():
        return None
    why = (folder / CANCEL).read_text(errors="replace").strip() or "It was cancelled."
    return _status(folder, "failed", why)


def verdict(folder: Path, look: Look, *, where: str, began: bool, said: str) -> LaunchStatus:
    """The verdict on a job that is in the queue no more.

    Args:
        folder: Its run folder.
        look: What the batch system says; its phase is `ended` or `gone`.
        where: The job's name there.
        began: Whether its supervisor ever started.
        said: Last line of the batch system's own output.
    """
    if (status := cancelled(folder)) is not None:
        return status
    ended = Exit.read(folder)
    if ended is not None and ended.reason == "deadline":
        return status_of(ended, folder)
    where = " ".join(f"{where}: {look.word} {look.reason}".split()).rstrip(":")
    if look.end == "cancelled":
        return _status(folder, "failed", f"It was cancelled in the queue, by an operator or by hand ({where}).")
    error = trainer_error(folder)
    if error.get("retryable") is False and ended is not None:
        return status_of(replace(ended, reason="ended"), folder)
    if look.end == "interrupted":
        return _status(folder, "lost", f"The batch system ended it ({where}); it goes on from its checkpoint.")
    if ended is not None:
        return status_of(ended, folder)
    if look.end == "time limit":
        return _status(folder, "failed", f"It reached the time limit of the queue and saved nothing ({where}).")
    if began:
        return _status(folder, "lost", f"Its supervisor vanished ({where}).")
    if look.phase == "gone":
        return _status(folder, "lost", f"The batch system does not know it ({where}).")
    last = last_words(log_tail(folder)) or said
    return _status(folder, "failed", f"Its batch script ended before the training began ({where}): {last}")


def _status(folder: Path, state: str, detail: str) -> LaunchStatus:
    return LaunchStatus(
        state="lost" if state == "lost" else "failed",
        detail=detail,
        log_tail=log_tail(folder),
        progress=last_metrics(folder),
    )
