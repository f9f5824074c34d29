"""The warm worker: `python -m filmloop.adapters.local.worker FOLDER`. Has torch loaded, and forks a supervisor for every job.

Listens on the Unix socket FOLDER/socket, in a folder that only its user may enter. A request names a run folder and brings the
lock on its file `alive`, as a supervisor that is started cold inherits it. The supervisor is no child of the worker for
long: jobs live on when the worker ends, and the worker may be killed at any time. Or it names a module that the caller
needs beside itself and would wait for: it is forked with what is loaded here (`adapters.local.keeper`).

It begins itself anew when a file that it has loaded was changed, or after `max_jobs`; it ends when nothing was asked of it for
`idle_s`, when its folder is gone, or for a caller with another installation of Python or filmloop.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmloop.adapters.local.held import hold
from filmloop.adapters.local.keeper import keep
from filmloop.adapters.local.mark import BLANK, Markable
from filmloop.adapters.local.runfolder import LOG, Launch
from filmloop.adapters.local.stamps import Stamps
from filmloop.adapters.local.supervise import Child, environ_of, supervise
from filmloop.adapters.local.workerline import LOCK, NOTHING, SOCKET, Installation, at, receive, send
from filmloop.core.clock import utc_now
from filmloop.core.forking import close_inherited, fork, run_child
from filmloop.training import warm

_LOOK_S = 2.0
_TALK_S = 5.0
_BACKLOG = 64
_FAILED_EXIT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What a worker that begins anew tells the one that takes its place.

    Attributes:
        asked_s: When something was last asked of it, by the monotonic clock: beginning anew is no reason to stay longer.
        known: `Stamps.digest` of what it had loaded.
    """

    asked_s: float
    known: str


class Worker:
    """One worker in its folder.

    Attributes:
        jobs: How many it was given.
    """

    def __init__(
        self,
        folder: Path,
        listener: socket.socket,
        *,
        idle_s: float,
        max_jobs: int,
        former: Former | None,
        stands_in: bool,
    ) -> None:
        self.jobs, self._stands_in = 0, stands_in
        self._folder, self._listener = folder, listener
        self._idle_s, self._max_jobs = idle_s, max_jobs
        self._began_utc, began_ns = utc_now(), time.time_ns()
        self._installation = Installation.here()
        self._mark = Markable()
        importlib.import_module("filmloop.zoo.frames")  # for `filmloop.zoo.scoring`; ONNX Runtime would start a thread
        warm.load()
        self._stamps = Stamps(began_ns, known=former.known if former else "")
        self._problem = warm.why_not() or ("" if self._mark.mark(BLANK) else "its processes cannot be marked")
        self._inode = _inode(folder / SOCKET)
        self._asked_s = former.asked_s if former else time.monotonic()

    def as_former(self) -> Former:
        """For the one that takes its place."""
        return Former(asked_s=self._asked_s, known=self._stamps.digest)

    def serve(self) -> bool:
        """Until it has to end; returns whether it is to begin anew."""
        told_to_stop: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: told_to_stop.append(number))
        print(f"filmloop: {utc_now()} warm worker {os.getpid()} is ready {self._problem}", flush=True)
        while not told_to_stop:
            ready, _, _ = select.select([self._listener], [], [], min(_LOOK_S, self._idle_s))
            if ready:
                verdict = self._serve_one()
                self._asked_s = time.monotonic()
                if verdict is not None:
                    return verdict
            elif time.monotonic() - self._asked_s > self._idle_s:
                return _end("nothing was asked of it")
            elif _inode(self._folder / SOCKET) != self._inode:
                return _end("its folder is gone")
            elif path := self._stamps.changed():
                return _anew(f"{path} was changed")
        return _end("told to stop")

    def _serve_one(self) -> bool | None:
        """One caller, whatever it says: a bad one is told of in the log and must not end the worker."""
        try:
            with self._listener.accept()[0] as line:
                return self._answer(line)
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as exc:
            print(f"filmloop: {utc_now()} a caller was not served: {exc!r}", flush=True)
            return None

    def _answer(self, line: socket.socket) -> bool | None:
        """Serve one caller; None to go on, else what `serve` returns."""
        line.settimeout(_TALK_S)
        if _uid_of(line) not in (0, os.geteuid()):
            return None
        request, _ = receive(line)
        return self._do(line, request)

    def _do(self, line: socket.socket, request: Mapping[str, Any]) -> bool | None:
        if request["ask"] == "status":
            told = {"pid": os.getpid(), "since_utc": self._began_utc, "jobs": self.jobs, "rss_mb": _rss_mb()}
            send(line, {**told, "stands_in": self._stands_in})
            return None
        if request["installation"] != self._installation.as_json():
            send(line, {"anew": "it belongs to another installation"})
            return _end("a caller has another installation")
        if path := self._stamps.changed():
            send(line, {"anew": f"{path} was changed"})
            return _anew(f"{path} was changed")
        if self._problem:
            send(line, {"refused": self._problem})
            return None
        send(line, {"takes": True})
        _, fds = receive(line, max_fds=2)
        try:
            if request["ask"] == "module":
                stdin, output = fds
                _fork_away(lambda: _keeper(line, request, stdin, output))
                return None
            (lock,) = fds
            _fork_away(lambda: self._supervisor(line, request, lock))
        finally:
            for fd in fds:
                os.close(fd)
        self.jobs += 1
        return _anew(f"it has had {self.jobs} jobs") if self.jobs >= self._max_jobs else None

    def _supervisor(self, line: socket.socket, request: Mapping[str, Any], lock: int) -> None:
        folder = Path(request["run_folder"])
        os.setsid()
        close_inherited(line.fileno(), lock)
        _move_in(request, folder)
        claimed: list[bool] = []

        def ready() -> None:
            claimed.append(True)
            with suppress(OSError), line:  # a caller that died meanwhile has its job all the same
                send(line, {"supervisor": os.getpid()})

        supervise(folder, self._start_ranks, ready=ready)
        if not claimed:
            with suppress(OSError), line:
                send(line, NOTHING)

    def _start_ranks(self, launch: Launch, folder: Path) -> Child:
        def agent() -> int:
            os.setpgid(0, 0)
            close_inherited()
            if not self._mark.mark(launch.token):
                print("filmloop: the agent cannot be marked", file=sys.stderr, flush=True)
                return _FAILED_EXIT
            os.environ.update(environ_of(launch))
            return warm.agent(launch.module, [str(launch.command[-1])], ranks=launch.ranks, threads=launch.threads)

        return fork(agent)


def _fork_away(work: Callable[[], None]) -> None:
    """Two forks: what does `work` belongs to init, and the worker has no child to wait for."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)  # never back into `serve`: there would be two workers
    run_child(work)


def _keeper(line: socket.socket, request: Mapping[str, Any], stdin: int, output: int) -> None:
    os.setsid()
    close_inherited(line.fileno(), stdin, output)
    _become(request)
    keep(line, request["module"], request["args"], stdin, output)


def _move_in(request: Mapping[str, Any], folder: Path) -> None:
    """Become what the caller would have started, and write into the run's log."""
    with (folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    _become(request)


def _become(request: Mapping[str, Any]) -> None:
    """Take the caller's environment, folder, cores and umask."""
    os.environ.clear()
    os.environ.update(request["environ"])
    os.umask(request["umask"])
    with suppress(OSError):  # cores that this machine no longer has
        os.sched_setaffinity(0, request["cores"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]


def _inode(path: Path) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


def _uid_of(line: socket.socket) -> int:
    """Who is at the other end: struct ucred is pid, uid, gid."""
    cred = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(cred[4:8], sys.byteorder)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _end(why: str) -> bool:
    print(f"filmloop: {utc_now()} warm worker {os.getpid()} ends: {why}", flush=True)
    return False


def _anew(why: str) -> bool:
    print(f"filmloop: {utc_now()} warm worker {os.getpid()} begins anew: {why}", flush=True)
    return True


def listen(folder: Path) -> socket.socket:
    """The listening socket FOLDER/socket; one that lies there is of a dead worker. The caller holds the lock."""
    with at(folder) as here:
        with suppress(FileNotFoundError):
            os.unlink(f"{here}/{SOCKET}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{here}/{SOCKET}")
        os.chmod(f"{here}/{SOCKET}", 0o600)
    listener.listen(_BACKLOG)
    return listener


def run(
    folder: Path,
    *,
    idle_s: float,
    max_jobs: int,
    background: bool = False,
    stands_in: bool = False,
    former: Former | None = None,
) -> Former | None:
    """Serve until it has to end; returns what to begin anew with, None not to. Ends at once if the folder has its worker.

    `background`: the caller's child ends once callers can be sure to reach the worker, and the worker is no child of his.
    `stands_in`: a caller started it for want of one, and it makes room for one that somebody runs.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it loads, a signal ends it on the spot
    with hold(folder / LOCK) as lock:
        if lock is None:
            print(f"filmloop: {folder} has its worker already")
            return None
        with listen(folder) as listener:
            if background:
                if os.fork():
                    os._exit(0)
                os.setsid()
                listener.listen(_BACKLOG)  # again: the kernel tells callers the process that did so last
            worker = Worker(
                folder, listener, idle_s=idle_s, max_jobs=max_jobs, former=former, stands_in=stands_in or background
            )
            return worker.as_former() if worker.serve() else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--idle-s", type=float, required=True)
    parser.add_argument("--max-jobs", type=int, required=True)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--stands-in", action="store_true", help="what --background was, in one that begins anew")
    parser.add_argument("--asked-s", type=float, help="set by a worker that begins anew, with --known")
    parser.add_argument("--known", default="")
    args = parser.parse_args()
    former = None if args.asked_s is None else Former(asked_s=args.asked_s, known=args.known)
    ended = run(
        args.folder,
        idle_s=args.idle_s,
        max_jobs=args.max_jobs,
        background=args.background,
        stands_in=args.stands_in,
        former=former,
    )
    if ended is not None:
        again = [str(args.folder), "--idle-s", str(args.idle_s), "--max-jobs", str(args.max_jobs)]
        again += ["--stands-in"] if args.background or args.stands_in else []
        again += ["--asked-s", str(ended.asked_s), "--known", ended.known]
        os.execv(sys.executable, [sys.executable, "-u", "-m", "filmloop.adapters.local.worker", *again])


if __name__ == "__main__":
    main()
