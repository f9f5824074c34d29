"""What made a rank fail, in words; and `error.json` in the run folder: of all that the ranks of one start have to say, what tells most.

Every rank may write at any moment, so nothing is read and then overwritten: a document is taken away by renaming it,
which only one rank can do, and the better of it and one's own is put back under a name that must be free.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from filmloop.core.errors import ConfigError, DataError, FilmloopError, TrainingError, TransientError
from filmloop.core.fsio import create_json, disk_errors, read_json

ERROR = "error.json"
_START = "start"
_NO_MEMORY = ("out of memory", "can't allocate memory")  # torch's words on GPUs and on CPUs


def explained(exc: Exception) -> FilmloopError:
    """The error of our own tree for what torch or Python raised."""
    first_line = str(exc).partition("\n")[0]
    if isinstance(exc, MemoryError) or any(word in first_line for word in _NO_MEMORY):
        return TrainingError(
            f"There is not enough memory for this training: {first_line}",
            hint="Lower training.hyper.batch_frames or training.hyper.loader_mb, or make the network smaller.",
        )
    if type(exc).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(
            f"torch.compile cannot compile the network here: {first_line}",
            hint="Set training.hyper.compile = false, or install a C++ compiler where the training runs.",
        )
    if "gloo" in str(exc).lower() or "nccl" in str(exc).lower() or type(exc).__module__.startswith("torch.distributed"):
        return TransientError(
            f"The ranks lost each other: {first_line}",
            hint="Start the same job again: it goes on from its checkpoint. The log says which rank ended first.",
        )
    return FilmloopError(f"{type(exc).__name__}: {exc}", hint="This is a bug; the traceback is in the job's log.")


def leave_error(folder: Path, error: FilmloopError) -> None:
    """Write the error, unless one of the same start that tells more, or as much, is there.

    A retryable error tells less: when a rank fails for good, the others see nothing but a lost connection.

    Raises:
        TransientError: the disk refuses.
    """
    _put(folder / ERROR, {**error.as_dict(), _START: _this_start()})


def forget_earlier_error(folder: Path) -> None:
    """Remove the error of an earlier start; another rank of this one may have failed already, and its error stays.

    Raises:
        TransientError: the disk refuses.
    """
    found = _take(folder / ERROR)
    if found is not None and _is_ours(found):
        _put(folder / ERROR, found)


def _put(path: Path, document: dict[str, Any]) -> None:
    while not create_json(path, document):
        found = _take(path)
        if found is not None and _is_ours(found) and (document["retryable"] or not found["retryable"]):
            document = found


def _take(path: Path) -> dict[str, Any] | None:
    taken = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.taken")
    with disk_errors(path):
        try:
            os.replace(path, taken)
        except FileNotFoundError:
            return None
    try:
        value = read_json(taken)
    except DataError:
        return None
    finally:
        taken.unlink(missing_ok=True)
    return value if isinstance(value, dict) else None


def _is_ours(document: dict[str, Any]) -> bool:
    return document.get(_START) == _this_start()


def _this_start() -> str:
    """The same for all ranks of one torchrun, and for nothing else: it draws an id for every --standalone start."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{run} {os.environ.get('MASTER_PORT', '')}" if run else f"process {os.getpid()}"
