"""The launcher's program at the endpoint: `python -m filmloop.adapters.globus.compute.task PARENT`.

One request (`wire.TaskRequest`) on stdin, one answer (`wire.TaskAnswer`) on stdout. Training is supervised in this
process, by the batch jobs' supervisor and with their files; the lock `alive` in the run folder says that somebody does,
whichever task brought them here. So a task that came twice, or late, starts nothing: it waits and tells how the
one that runs has ended.

When the worker that asked dies, this process gets SIGTERM: it has the trainer save its checkpoint and ends. When
this process is killed, the kernel kills its torchrun, and the ranks die with that. Imports no torch and no Globus.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from filmloop import __version__
from filmloop.adapters.batch.attempt import HOST, Attempt, Started, torchrun
from filmloop.adapters.batch.dialect import Look
from filmloop.adapters.batch.settling import look_again
from filmloop.adapters.batch.supervise import start, supervise
from filmloop.adapters.batch.verdict import cancelled, success, verdict
from filmloop.adapters.globus.compute.ended import buried, bury
from filmloop.adapters.globus.compute.timeleft import ends_soon, save_after_s
from filmloop.adapters.globus.compute.wire import TaskAnswer, TaskRequest
from filmloop.adapters.local.held import hold, is_held
from filmloop.adapters.local.jobfolder import folder_for
from filmloop.adapters.local.mark import kill_marked
from filmloop.adapters.local.runfolder import ALIVE, CANCEL, JOB, LOG, last_metrics, log_tail
from filmloop.core.clock import utc_now, utc_text
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, DataError, FilmloopError, TransientError
from filmloop.core.forking import die_with
from filmloop.core.fsio import atomic_write_bytes, translate_os_error
from filmloop.ports.launcher import LaunchStatus

_LOOK_S = 0.2
_SPARE_S = 60.0
"""How much longer than its deadline, its grace and a save the attempt of somebody else may hold the folder."""
_HERE = "at the endpoint"


def train(request: TaskRequest) -> TaskAnswer:
    """Train, or wait for whoever does; the answer tells how it ended."""
    _same_version(request)
    came_s, folder = time.time(), Path(request.job.output_dir).absolute()
    if not (folder / JOB).is_file() and (ended := buried(request)) is not None:
        return ended
    folder_for(request.job)
    _log_to(folder)
    end_s = time.monotonic() + request.job.deadline_s + request.grace_s + _SPARE_S
    while True:
        with hold(folder / ALIVE) as lock:
            if lock is not None:
                return bury(request, _train(request, folder, came_s))
        if time.monotonic() > end_s:
            return _answer(request, LaunchStatus(state="lost", detail=f"Somebody else holds {folder / ALIVE}."))
        time.sleep(_LOOK_S)


def look(request: TaskRequest) -> TaskAnswer:
    """How the job stands."""
    return bury(request, _look(request))


def _look(request: TaskRequest) -> TaskAnswer:
    folder = Path(request.job.output_dir)
    if not (folder / JOB).is_file():
        return buried(request) or TaskAnswer(job_id=request.job.job_id, state="absent", host=socket.gethostname())
    _is_ours(request, folder)
    look_again(folder)
    attempt = Attempt.read(folder)
    is_alive = is_held(folder / ALIVE)
    if (status := success(folder)) is not None:
        return _answer(request, status, attempt)
    if is_alive:
        return _under_way(request, folder, attempt)
    if attempt is None:
        gone = cancelled(folder)
        return _answer(request, gone) if gone else TaskAnswer(job_id=request.job.job_id, state="waiting")
    kill_marked(attempt.token)  # nothing of a lost attempt may go on writing beside its successor
    status = _ended(folder, attempt)
    if status.state == "lost" and attempt.attempt < request.attempt:
        return TaskAnswer(job_id=request.job.job_id, state="waiting", token=request.token)
    return _answer(request, status, attempt)


def cancel(request: TaskRequest) -> TaskAnswer:
    """Write down that the job is to end; returns when it has, or after its grace."""
    before = look(request)
    if before.state in ("succeeded", "failed"):
        return before
    folder = folder_for(request.job)
    if not (folder / CANCEL).exists():
        atomic_write_bytes(folder / CANCEL, f"{request.why or 'It was cancelled.'}\n".encode())
    end_s = time.monotonic() + request.grace_s + _SPARE_S / 2
    while is_held(folder / ALIVE) and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    return look(request)


def _train(request: TaskRequest, folder: Path, came_s: float) -> TaskAnswer:
    before = Attempt.read(folder)
    if (status := success(folder) or cancelled(folder)) is not None:
        return _answer(request, status, before)
    if before is not None:
        status = _ended(folder, before)
        if status.state == "failed":
            return _answer(request, status, before)
        if before.attempt > request.attempt:
            detail = f"Attempt {request.attempt} came after attempt {before.attempt} and did nothing."
            return _answer(request, LaunchStatus(state="lost", detail=detail))
        if before.token == request.token and _began(folder, before):
            return _answer(request, status, before)
        kill_marked(before.token)
    if (ended := buried(request)) is not None:  # its folder is being deleted
        return ended
    if came_s > request.start_by_s:
        if before is not None and _began(folder, before):
            late = f"Attempt {request.attempt} came too late and did not begin."
            return _answer(request, LaunchStatus(state="lost", detail=late))
        # Both times, so that a person sees clocks that differ.
        why = "It waited too long for the endpoint, or in its queue, and was withdrawn: "
        why += f"it was to begin by {utc_text(request.start_by_s)}, and came at {utc_text(came_s)} by the clock there."
        atomic_write_bytes(folder / CANCEL, f"{why}\n".encode())
        return _answer(request, LaunchStatus(state="failed", detail=why))
    if ends_soon(request):
        answer = TaskAnswer(job_id=request.job.job_id, state="waiting", token=request.token)
        return answer.model_copy(update={"detail": "Its batch job ends too soon for it to begin."})
    attempt = _attempt(request, folder)
    attempt.write(folder)
    me = os.getpid()
    # srun and mpiexec end their ranks elsewhere when they get SIGTERM, and cannot when they get SIGKILL.
    number = signal.SIGTERM if request.nodes > 1 else signal.SIGKILL
    supervise(folder, attempt.token, _HERE, partial(start, before=partial(die_with, me, number)))
    return _answer(request, success(folder) or _ended(folder, attempt), attempt)


def _attempt(request: TaskRequest, folder: Path) -> Attempt:
    return Attempt(
        attempt=request.attempt,
        token=request.token,
        name=request.job.job_id,
        command=(*_command(request), str(folder / JOB)),
        stop=_stop(request),
        threads=request.threads,
        deadline_s=request.job.deadline_s,
        save_after_s=save_after_s(request),
        grace_s=request.grace_s,
        submitted_utc=utc_now(),
    )


def _command(request: TaskRequest) -> tuple[str, ...]:
    """torchrun on this node, or one on each node that the engine for MPI has chosen."""
    if request.nodes == 1:
        # One machine: ranks talk over loopback, whatever its host name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        alone = ("--standalone", f"--nproc-per-node={request.processes_per_node}")
        torch = (sys.executable, "-m", "filmloop.training.torchrun", *alone, "-m", "filmloop.training.entry")
        return request.command or torch
    prefix = tuple(shlex.split(os.environ.get("PARSL_MPI_PREFIX", "")))
    if not prefix:
        raise ConfigError(
            f"[launcher] nodes is {request.nodes}, but this endpoint says nothing about nodes (PARSL_MPI_PREFIX).",
            hint="Several nodes need an endpoint whose template uses GlobusMPIEngine; see site_configs/endpoints.",
        )
    if prefix[0] == "srun":
        prefix = (*prefix, "--kill-on-bad-exit=1")
    together = torchrun(sys.executable, nodes=request.nodes, processes_per_node=request.processes_per_node)
    return (*prefix, *(request.command or tuple(word.replace(HOST, _first_node()) for word in together)))


def _first_node() -> str:
    """Where the ranks meet: here if this is one of their nodes, else the first of them."""
    nodes = [name for name in os.environ.get("PARSL_MPI_NODELIST", "").split(",") if name]
    here = {socket.gethostname(), socket.gethostname().partition(".")[0], os.environ.get("SLURMD_NODENAME", "")}
    return HOST if not nodes or here.intersection(nodes) else nodes[0]


def _stop(request: TaskRequest) -> tuple[str, ...]:
    """SIGTERM to srun would kill the ranks at once, without a checkpoint; the steps of its job get one like this."""
    if request.nodes > 1 and os.environ.get("PARSL_MPI_PREFIX", "").startswith("srun"):
        return ("scancel", "--signal=TERM", "$SLURM_JOB_ID")
    return ()


def _ended(folder: Path, attempt: Attempt) -> LaunchStatus:
    """How an attempt that nobody supervises any more has ended."""
    if not _began(folder, attempt):
        return cancelled(folder) or LaunchStatus(state="lost", detail="It was cut off before it began.")
    return verdict(folder, Look(phase="ended", end="by itself"), where=_HERE, began=True, said="")


def _began(folder: Path, attempt: Attempt) -> bool:
    started = Started.read(folder)
    return started is not None and started.token == attempt.token


def _under_way(request: TaskRequest, folder: Path, attempt: Attempt | None) -> TaskAnswer:
    started = Started.read(folder)
    if attempt is None or started is None or started.token != attempt.token:
        token = attempt.token if attempt is not None else ""
        return TaskAnswer(job_id=request.job.job_id, state="waiting", token=token)
    status = LaunchStatus(
        state="running", detail=f"on {started.host}", log_tail=log_tail(folder), progress=last_metrics(folder)
    )
    answer = _answer(request, status, attempt)
    return answer.model_copy(update={"started_utc": started.started_utc})


def _answer(request: TaskRequest, status: LaunchStatus, attempt: Attempt | None = None) -> TaskAnswer:
    token = attempt.token if attempt is not None else request.token
    return TaskAnswer.of(status, job_id=request.job.job_id, token=token, host=socket.gethostname())


def _is_ours(request: TaskRequest, folder: Path) -> None:
    before = TrainJob.read(folder / JOB)
    if before.job_id != request.job.job_id:
        raise DataError(f"{folder} is the run folder of job {before.job_id}, not of {request.job.job_id}.")


def _same_version(request: TaskRequest) -> None:
    here, there = __version__.split(".")[:2], request.filmloop.split(".")[:2]
    if here != there:
        raise ConfigError(
            f"filmloop is {__version__} at the endpoint and {request.filmloop} here.",
            hint=f"pip install 'filmloop[hpc]=={request.filmloop}' there, or name its python in [launcher] python.",
        )


def _log_to(folder: Path) -> None:
    """What the supervisor has to say goes where the trainer's words go."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)


def answered(text: bytes) -> dict[str, Any]:
    """Do what the request says; an error of ours is an answer too.

    A look or a cancel that the disk refuses for now says nothing about the training, which goes on: it has no answer.
    """
    try:
        request = TaskRequest.model_validate_json(text)
    except ValidationError as exc:
        raise SystemExit(f"filmloop {__version__} at the endpoint does not understand the request: {exc}") from exc
    try:
        return {"train": train, "look": look, "cancel": cancel}[request.do](request).as_json()
    except FilmloopError as exc:
        error = exc
    except OSError as exc:  # whatever it is, the job is not to blame
        known = translate_os_error(exc, Path(request.job.output_dir))
        error = TransientError(known.message, hint=known.hint)
    if error.retryable and request.do != "train":
        raise SystemExit(f"filmloop at the endpoint could not {request.do}: {error.message}")
    return _error(request, error).as_json()


def _error(request: TaskRequest, exc: FilmloopError) -> TaskAnswer:
    status = LaunchStatus(
        state="lost" if exc.retryable else "failed",
        exit_code=exc.exit_code,
        detail=exc.message,
        error=type(exc).__name__,
        hint=exc.hint,
    )
    return _answer(request, status)


def _tie(parent: int) -> None:
    """End in an orderly way when the worker ends; a shell script between the two has to `exec`."""
    if not os.path.exists(f"/proc/{parent}"):
        raise SystemExit("The worker that asked is gone.")
    if os.getppid() == parent:
        die_with(parent, signal.SIGTERM)


def main(parent: int) -> None:
    """Answer one request."""
    import json

    _tie(parent)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not spoil the answer
    print(json.dumps(answered(sys.stdin.buffer.read())), file=out, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
