"""Which jobs have ended, beside their run folders, which go when their cycle has closed.

<runs>/.ended/<job>.json    the answer; a task of the job that comes later gives it again and trains nothing
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.globus.compute.launchjournal import file_name
from filmloop.adapters.globus.compute.wire import TaskAnswer, TaskRequest
from filmloop.core.errors import FilmloopError
from filmloop.core.fsio import create_json

_FOLDER = ".ended"
_KEPT_S = 14 * 86400.0
"""Longer than the service keeps a task, or a queue a job."""


def bury(request: TaskRequest, answer: TaskAnswer) -> TaskAnswer:
    """Write down that the job has ended, if it has; gives the answer back. A disk that refuses does not spoil it."""
    path = _path(request)
    if answer.state not in ("succeeded", "failed") or path.exists():
        return answer
    try:
        create_json(path, answer.as_json())
    except FilmloopError as exc:
        print(f"filmloop: its end is not written down: {exc.message}", file=sys.stderr, flush=True)
    with suppress(OSError):
        for old in path.parent.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink()
    return answer


def buried(request: TaskRequest) -> TaskAnswer | None:
    """How the job has ended; None if it has not, as far as anybody wrote down."""
    path = _path(request)
    return TaskAnswer.read(path) if path.exists() else None


def _path(request: TaskRequest) -> Path:
    return Path(request.job.output_dir).absolute().parent / _FOLDER / f"{file_name(request.job.job_id)}.json"
