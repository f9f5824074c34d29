"""Ranks without a start: forked from a process that has torch and this package loaded, where torchrun imports both anew.

    warm.load()                          once, in a process that lives on
    warm.run_job(job, ranks=2)           as often as wanted; returns the exit code

Knows no launcher: a worker of any batch or function service that keeps its process may call it. The ranks find the
environment that torchrun gives them, and one that dies ends the others, with the exit code that `training.torchrun` has.

Forking is safe for a process with one thread that has not touched a GPU: `why_not` says what stands in the way, and
`run_job` then starts `training.torchrun`, cold.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError
from filmloop.core.forking import Forked, close_inherited, die_with, fork, threads_here
from filmloop.core.fsio import disk_errors

ENTRY = "filmloop.training.entry"
"""What runs in every rank."""

PRELOAD = (
    "torch",
    "torch.distributed",
    "torch._dynamo",  # the first optimiser imports it, and sympy with it: .8 s
    "torch.distributed.nn.jit.instantiator",  # the first DistributedDataParallel
    "torch.onnx",
    "torch.onnx._internal.torchscript_exporter.utils",  # the first export
    "onnx",
    "google.protobuf",
    "zarr",
    "safetensors.torch",
    "matplotlib.backends.backend_agg",
    "filmloop.training.bundle_out",
    "filmloop.training.data",
    "filmloop.training.failure",
    "filmloop.training.plots",
    "filmloop.training.ranks",
    "filmloop.training.trainer",
    "filmloop.training.trial",
    "filmloop_models.catalog",
    "filmloop_models.cookiebox.networks",
)
"""Imported by `load`. Not the entry itself: it runs as `python -m` runs it."""

SIGNAL_BASE = 128
"""A rank killed by signal n gives 128 + n, as in a shell."""

_STOP_S = 30.0
"""From SIGTERM to SIGKILL for the ranks that a failed one leaves; torchrun's time."""
_LOOK_S = 1.0
_log = logging.getLogger(__name__)


def load() -> None:
    """Import what a rank imports; 3 s, and 350 MB of which ranks share most. Starts no thread, touches no GPU.

    Raises:
        ImportError: a package is missing.
    """
    for name in PRELOAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector would otherwise write into every page that the ranks share


def why_not() -> str:
    """What makes a fork of this process unsafe; empty if nothing does."""
    if (count := threads_here()) > 1:
        return f"process {os.getpid()} has {count} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"process {os.getpid()} has opened a GPU"
    return ""


def run_job(
    job: TrainJob, *, ranks: int = 1, threads: int = 1, deadline_s: float | None = None, grace_s: float = 10.0
) -> int:
    """Train `job` in forked ranks, or under torchrun where a fork is not safe; returns the exit code.

    Blocks. May be called again after any end: a finished job is found finished, any other goes on from its checkpoint.
    What the trainer has to say lies in `job.output_dir`, and so does `run.log`. All processes of the job die with this one.

    Args:
        job: What to train; its output folder is made.
        ranks: Processes on this machine.
        threads: CPU threads of each.
        deadline_s: SIGTERM after this time, and SIGKILL `grace_s` later. Default: the job's own.
        grace_s: Time for a checkpoint.

    Raises:
        TransientError: the disk refuses.
    """
    folder = Path(job.output_dir)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        job.write(folder / "job.json")
    environ = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": str(threads)}
    with disk_errors(folder), (folder / "run.log").open("ab") as log:
        child: Forked | subprocess.Popen[bytes]
        if reason := why_not():
            _log.warning("cold start of job %s: %s", job.job_id, reason)
            child = _cold(folder / "job.json", ranks, environ, log.fileno())
        else:
            child = fork(lambda: _agent_into(log.fileno(), folder / "job.json", ranks, threads, environ))
    try:
        return child.wait(job.deadline_s if deadline_s is None else deadline_s)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            return child.wait(grace_s)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def agent(module: str, args: Sequence[str], *, ranks: int, threads: int) -> int:
    """What torchrun is when it is cold: runs `module` in every rank, and ends when they have. For a process of its own.

    Takes SIGTERM and passes it on. Returns 0, or the exit code of the rank that failed first. Forks before it has a
    thread: the store through which the ranks meet comes up behind them, on a socket that was bound before, so that no
    other program can take its port.
    """
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.append(number))
    wakes, waker = os.pipe()
    for fd in (wakes, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    if reason := why_not():
        raise ConfigError(
            f"No ranks can be forked here: {reason}.", hint="Start the job cold: [launcher] warm = false."
        )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        shared = _shared_environ(ranks, threads, port)
        children = [fork(_rank(module, args, number, threads, shared)) for number in range(ranks)]
        store = _store(server, port) if ranks > 1 else None
        try:
            return _watch(children, told_to_stop, wakes)
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.wait()
            signal.set_wakeup_fd(-1)
            del store


def _agent_into(log: int, job_file: Path, ranks: int, threads: int, environ: dict[str, str]) -> int:
    """`agent`, with its output in a file."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    close_inherited()
    os.environ.update(environ)
    return agent(ENTRY, [str(job_file)], ranks=ranks, threads=threads)


def _cold(job_file: Path, ranks: int, environ: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "filmloop.training.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    parent = os.getpid()
    return subprocess.Popen(
        [*command, "-m", ENTRY, str(job_file)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environ,
        preexec_fn=lambda: die_with(parent),
    )


def _shared_environ(ranks: int, threads: int, port: int) -> dict[str, str]:
    """What torchrun tells all ranks of one machine."""
    world = str(ranks)
    return {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "ROLE_WORLD_SIZE": world,
        "GROUP_WORLD_SIZE": "1",
        "GROUP_RANK": "0",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _rank(module: str, args: Sequence[str], number: int, threads: int, shared: dict[str, str]) -> Callable[[], None]:
    def work() -> None:
        os.setsid()
        close_inherited()
        os.environ.update(shared)
        for name in ("RANK", "LOCAL_RANK", "ROLE_RANK"):
            os.environ[name] = str(number)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)
        sys.argv = [module, *args]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return work


def _store(server: socket.socket, port: int) -> object:
    """The agent's half of the ranks' rendezvous, on the socket that already listens."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    fd = server.detach()  # the store closes it
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=fd)


def _watch(children: list[Forked], told_to_stop: list[int], wakes: int) -> int:
    """Until every rank has ended; the code of the first that failed."""
    first, kill_at_s = 0, float("inf")
    stopping = False
    with ExitStack() as stack:
        running = {os.pidfd_open(child.pid): child for child in children}
        for pidfd in running:
            stack.callback(os.close, pidfd)
        while running:
            ready, _, _ = select.select([*running, wakes], [], [], _LOOK_S)
            if wakes in ready:
                os.read(wakes, 4096)
            for pidfd in ready:
                child = running.pop(pidfd, None)
                if child is not None and (code := child.wait()) and not first:
                    first = code if code > 0 else SIGNAL_BASE - code
                    if len(children) > 1 and not stopping:
                        told = f"filmloop: rank {children.index(child)} (pid {child.pid}) ended first, with exit code {code}"
                        print(told, file=sys.stderr, flush=True)
            if (first or told_to_stop) and not stopping:
                stopping, kill_at_s = True, time.monotonic() + _STOP_S
                for child in running.values():
                    child.terminate()
            if time.monotonic() > kill_at_s:
                for child in running.values():
                    child.kill()
    return first
