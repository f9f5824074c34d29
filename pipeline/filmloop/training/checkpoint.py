"""The trainer's state on disk, written by a thread while training goes on: whole or not at all, and the one before it too.

A file is the SHA-256 of what follows, in hex, and what `torch.save` makes: torch itself does not notice a bit that changed in
a tensor. Tensors are read back with torch's weights-only unpickler, which runs no code from the file. Why this is not
`torch.distributed.checkpoint`: docs/decisions/0016-checkpoints-by-a-thread.md.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filmloop.core.documents import TrainJob
from filmloop.core.fsio import PART_SUFFIX, atomic_write_bytes, disk_errors, sha256_bytes

CHECKPOINT = "checkpoint.pt"
EARLIER = "checkpoint.earlier.pt"
_DIGEST_BYTES = 64
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes states one after the other in the background; of those that wait only the newest is written.

    Args:
        folder: The run folder.
        job: Whose state it is.
    """

    def __init__(self, folder: Path, job: TrainJob) -> None:
        self._folder, self._job = folder, job
        self._waiting: dict[str, Any] | None = None
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Have a copy of `state` (tensors, numbers, text, lists, dicts) written; returns before it is.

        Raises:
            TransientError: the disk refused an earlier one; the checkpoint before that is intact.
        """
        copy = _copied(state)
        with self._changed:
            self._raise_error()
            self._waiting = copy
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="filmloop-checkpoint")
                self._thread.start()

    def finish(self) -> None:
        """Wait until the newest state is on the disk.

        Raises:
            TransientError: the disk refuses; the checkpoint before that is intact.
        """
        self.close()
        self._raise_error()

    def close(self) -> None:
        """Wait as `finish` does, but say nothing of a disk that refuses."""
        with self._changed:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                state, self._waiting = self._waiting, None
                if state is None or self._error is not None:
                    self._thread = None
                    return
            try:
                save_checkpoint(self._folder, self._job, state)
            except BaseException as exc:
                with self._changed:
                    self._error = exc

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def save_checkpoint(folder: Path, job: TrainJob, state: dict[str, Any]) -> None:
    """Write `state` durably; the former checkpoint stays beside it, in case this one is damaged later.

    Raises:
        TransientError: the disk refuses; the former checkpoint is intact.
    """
    buffer = io.BytesIO()
    torch.save({"job_digest": job.digest(), "state": state}, buffer)
    newest, earlier = folder / CHECKPOINT, folder / EARLIER
    with disk_errors(earlier):
        if newest.exists():
            part = earlier.with_suffix(".part")
            part.unlink(missing_ok=True)
            os.link(newest, part)
            os.replace(part, earlier)
    payload = buffer.getvalue()
    atomic_write_bytes(newest, sha256_bytes(payload).encode() + payload)


def read_checkpoint(folder: Path, job: TrainJob) -> bytes | None:
    """The bytes of the newest checkpoint of this job that is not damaged; None, with a warning if there was any.

    Called by the one that will write the next ones: what killed writers left half done is removed, and so is a damaged
    newest one, which the next one written would else put in the place of the earlier one.
    """
    with disk_errors(folder):
        for left in folder.glob(f"{CHECKPOINT}.*{PART_SUFFIX}"):
            left.unlink(missing_ok=True)
    for name in (CHECKPOINT, EARLIER):
        path = folder / name
        with disk_errors(path):
            data = path.read_bytes() if path.is_file() else None
        if data is not None and parse_checkpoint(data, job, torch.device("cpu")) is not None:
            if name == EARLIER:
                with disk_errors(folder):
                    (folder / CHECKPOINT).unlink(missing_ok=True)
            return data
    return None


def parse_checkpoint(data: bytes, job: TrainJob, device: torch.device) -> dict[str, Any] | None:
    """The state in `data`; None, with a warning, if it is damaged or of another job."""
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != sha256_bytes(payload).encode():
        _log.warning("a checkpoint of job %s is damaged or of an older form, it is left out", job.job_id)
        return None
    try:
        document = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        job_digest, state = document["job_digest"], dict(document["state"])
    except Exception as exc:  # whatever another torch finds in it, training can begin afresh
        _log.warning("a checkpoint of job %s cannot be read, it is left out: %s", job.job_id, exc)
        return None
    if job_digest != job.digest():
        _log.warning("the checkpoint is of another form of job %s, it is left out", job.job_id)
        return None
    return state


def _copied(value: Any) -> Any:
    """The same on the CPU, sharing no memory with `value`: training changes its tensors in place."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
