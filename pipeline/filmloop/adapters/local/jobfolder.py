"""A launcher's way from a job to its run folder, and back from its handle."""

from __future__ import annotations

from pathlib import Path

from filmloop.adapters.local.runfolder import JOB
from filmloop.core.documents import TrainJob
from filmloop.core.errors import DataError
from filmloop.core.fsio import create_json, disk_errors


def folder_for(job: TrainJob) -> Path:
    """The job's run folder, made and with the job in it; calling again changes nothing.

    Raises:
        DataError: the folder belongs to another job.
        TransientError: the disk refuses.
    """
    folder = Path(job.output_dir).absolute()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if create_json(folder / JOB, job.as_json()):
        return folder
    before = TrainJob.read(folder / JOB)
    if before.job_id != job.job_id:
        raise DataError(
            f"{folder} is the run folder of job {before.job_id}, not of {job.job_id}.",
            hint="Every job needs a run folder of its own.",
            ids={"job_id": job.job_id, "path": str(folder)},
        )
    return folder


def folder_of(handle: str) -> Path:
    """The run folder behind a launcher's handle.

    Raises:
        DataError: no job was started there.
    """
    folder = Path(handle)
    if not (folder / JOB).is_file():
        raise DataError(
            f"No job was started in {handle!r}.",
            hint="Submit it again; `filmloop history` lists the cycles and their jobs.",
            ids={"path": handle},
        )
    return folder
