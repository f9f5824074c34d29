"""The launcher for Globus Compute in front of the rig: training in one engine of the endpoint, short functions in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filmloop.adapters.globus.compute.launcher import GlobusLauncher
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.core.documents import ModelChoice, TrainJob
from rigs.endpoint import CLIENT_ID, ENGINES, SECRET
from rigs.globus import Compute

STANDIN = (sys.executable, "-m", "filmloop.testing.standin_trainer")


def launcher_of(
    compute: Compute,
    journal: Path,
    *,
    engine: str = "threads",
    command: Sequence[str] = STANDIN,
    grace_s: float = 0.5,
    **keys: Any,
) -> GlobusLauncher:
    """A launcher, as after a restart of its caller; `keys` are the section's. Its identity owns the endpoint."""
    os.environ["FILMLOOP_GLOBUS_SECRET"] = SECRET
    words: dict[str, Any] = {
        "endpoint": compute.endpoint.id, "options": ENGINES[engine], "control": ENGINES["control"],
        "poll_s": 0.1, "queue_wait_s": 60.0, "silent_s": 30.0, "request_timeout_s": 10.0, **keys,
    }  # fmt: skip
    return GlobusLauncher(
        section=LauncherSection(**words),
        globus=GlobusSection(client_id=CLIENT_ID),
        journal=journal,
        command=command,
        grace_s=grace_s,
    )


def job_in(runs: Path, act: str, *, job_id: str = "j1", deadline_s: float = 120.0) -> TrainJob:
    """A job for the stand-in trainer."""
    return TrainJob(
        job_id=job_id,
        model=ModelChoice(name="stand-in", frame_shape=(16, 128), hyper={"act": act}),
        fresh=(),
        output_dir=str(runs / job_id),
        deadline_s=deadline_s,
    )


CLIENT = """\
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from filmloop.adapters.globus.compute.launchjournal import Entry
from filmloop.core.documents import TrainJob
from rigs.launching import launcher_of

journal, job, endpoint, moment = sys.argv[1:]
real = Entry.write

def write(entry, sending):
    if moment == "before the ids" and sending.task_id:
        os.kill(os.getpid(), signal.SIGKILL)
    written = real(entry, sending)
    if moment == "after the intent" or (moment == "after the ids" and sending.task_id):
        os.kill(os.getpid(), signal.SIGKILL)
    return written

Entry.write = write
compute = SimpleNamespace(endpoint=SimpleNamespace(id=endpoint))
launcher_of(compute, Path(journal)).submit(TrainJob.read(Path(job)))
"""


def killed_client(compute: Compute, journal: Path, job: TrainJob, moment: str) -> int:
    """Submit the job in a process that dies at a moment of its journal; returns its exit code."""
    journal.mkdir(parents=True, exist_ok=True)
    path = journal.parent / "given.json"
    job.write(path)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(journal), str(path), compute.endpoint.id, moment],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        check=False,
    )
    return done.returncode
