"""A trainer that does in milliseconds, and on request, what real training may do: `python -m ... job.json`.

Launchers are tested with this real process and real signals. `job.model.hyper["act"]` says what it does:

    succeed           metrics, a bundle, exit 0
    wait              runs until a file `go` is in the run folder, then succeeds
    fail              writes error.json as the real entry does, exit 6
    crash             an exception that nobody foresaw: a traceback, exit 1, no error.json
    no_bundle         exit 0 and nothing to show for it
    bundle_then_fail  a finished bundle, then exit 6
    killed_once       killed by SIGKILL the first time, as when the memory runs out, succeeds the second
    transient_once    a retryable error.json and exit 3 the first time, succeeds the second
    requeue_once      exit 75 (checkpoint written) the first time, succeeds the second
    hang              ignores SIGTERM, and so does its child in a session of its own

Every start adds a line to `starts`, every process its id to `pids`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from filmloop.core.documents import TrainJob
from filmloop.core.errors import FilmloopError, TerminatedError, TrainingError, TransientError
from filmloop.core.fsio import atomic_write_json

_HANG = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
_FAILURE = TrainingError("The loss is not finite at step 7.", hint="Lower training.hyper.learning_rate.")


def main(job_path: Path) -> int:
    """Do what the job says; returns the exit code."""
    job = TrainJob.read(job_path)
    run = Path(job.output_dir)
    _add_line(run / "starts", job.job_id)
    _add_line(run / "pids", str(os.getpid()))
    print(f"stand-in trainer: job {job.job_id}", flush=True)
    act = str(job.model.hyper["act"])
    if act == "hang":
        _hang(run)
    if act == "crash":
        raise RuntimeError("the stand-in trainer crashed")
    if act == "no_bundle":
        return 0
    if act.endswith("_once") and len((run / "starts").read_text().splitlines()) == 1:
        return _end_early(run, act)
    if act == "fail":
        return _fail(run, _FAILURE)
    if act == "wait":
        _add_line(run / "metrics.jsonl", json.dumps({"step": 1, "loss": 0.5}))
        while not (run / "go").exists():
            time.sleep(0.02)
    _finish(run)
    return _fail(run, _FAILURE) if act == "bundle_then_fail" else 0


def _end_early(run: Path, act: str) -> int:
    if act == "killed_once":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "transient_once":
        return _fail(run, TransientError("The ranks lost each other.", hint="Start the same job again."))
    return TerminatedError.exit_code


def _hang(run: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", _HANG], start_new_session=True)
    _add_line(run / "pids", str(child.pid))
    time.sleep(600)


def _fail(run: Path, error: FilmloopError) -> int:
    print(error.message, file=sys.stderr, flush=True)
    atomic_write_json(run / "error.json", error.as_dict())
    return error.exit_code


def _finish(run: Path) -> None:
    _add_line(run / "metrics.jsonl", json.dumps({"step": 2, "loss": 0.25}))
    (run / "bundle").mkdir(exist_ok=True)
    (run / "bundle" / "weights.safetensors").write_bytes(b"stand-in")
    atomic_write_json(run / "bundle" / "result.json", {"status": "completed"})


def _add_line(path: Path, line: str) -> None:
    with path.open("a") as out:
        out.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
