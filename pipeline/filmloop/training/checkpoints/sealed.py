"""A checkpoint that is whole: its documents, and whether a single byte of it has changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filmloop.core.documents import TrainJob
from filmloop.core.errors import DataError
from filmloop.core.fsio import atomic_write_bytes, disk_errors, sha256_bytes, sha256_file
from filmloop.training.checkpoints.storage import Place

STATE = "state.json"
SUMS = "SHA256SUMS"
_log = logging.getLogger(__name__)


def seal(folder: Path, job: TrainJob, outline: Any, places: Mapping[str, Place], sums: Mapping[str, str]) -> None:
    """Make a checkpoint of the parts in `folder`.

    Raises:
        TransientError: the disk refuses.
    """
    # Not canonical: a loss that is not known yet is NaN.
    state = json.dumps({"job_digest": job.digest(), "state": outline, "tensors": places}).encode()
    atomic_write_bytes(folder / STATE, state)
    lines = [f"{digest}  {name}\n" for name, digest in {**sums, STATE: sha256_bytes(state)}.items()]
    atomic_write_bytes(folder / SUMS, "".join(lines).encode())


def is_of(folder: Path, job: TrainJob) -> bool:
    """Whether the checkpoint in `folder` is whole and of this very job; says what is wrong with it, if it was ever sealed.

    Raises:
        TransientError: the disk does not give it out.
    """
    with disk_errors(folder):
        sums = (folder / SUMS).read_bytes() if (folder / SUMS).is_file() else None
        if sums is None:
            return False
        if not _are_right(folder, sums):
            _log.warning("checkpoint %s of job %s is damaged, it is left out", folder.name, job.job_id)
            return False
        is_ours = read(folder).get("job_digest") == job.digest()
    if not is_ours:
        _log.warning("checkpoint %s is of another form of job %s, it is left out", folder.name, job.job_id)
    return bool(is_ours)


def read(folder: Path) -> dict[str, Any]:
    """The document of a checkpoint that is whole."""
    document = json.loads((folder / STATE).read_bytes())
    assert isinstance(document, dict)
    return document


def _are_right(folder: Path, sums: bytes) -> bool:
    try:
        digests = {name: digest for digest, name in (line.split("  ") for line in sums.decode().splitlines())}
        return STATE in digests and all(sha256_file(folder / name) == digest for name, digest in digests.items())
    except (ValueError, DataError):
        return False
