"""The trainer's state on disk: written whole or not at all, so that a killed job goes on where it was.

Tensors are read back with torch's weights-only unpickler, which runs no code from the file.
"""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from filmloop.core.documents import TrainJob
from filmloop.core.fsio import atomic_write_bytes

CHECKPOINT = "checkpoint.pt"
_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, job: TrainJob, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists, dicts) durably; the former checkpoint stays until it is whole.

    Raises:
        TransientError: the disk refuses; the former checkpoint is intact.
    """
    buffer = io.BytesIO()
    torch.save({"job_digest": job.digest(), "state": state}, buffer)
    atomic_write_bytes(folder / CHECKPOINT, buffer.getvalue())


def read_checkpoint(folder: Path) -> bytes | None:
    """The bytes of the checkpoint, or None if there is none."""
    path = folder / CHECKPOINT
    return path.read_bytes() if path.is_file() else None


def parse_checkpoint(data: bytes, job: TrainJob, device: torch.device) -> dict[str, Any] | None:
    """The state in `data`; None, with a warning, if it is damaged or of another job: training then starts afresh."""
    try:
        document = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        digest, state = document["job_digest"], document["state"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as exc:
        _log.warning("the checkpoint of job %s cannot be read, training starts afresh: %s", job.job_id, exc)
        return None
    if digest != job.digest():
        _log.warning("the checkpoint is of another form of job %s, training starts afresh", job.job_id)
        return None
    return dict(state)
