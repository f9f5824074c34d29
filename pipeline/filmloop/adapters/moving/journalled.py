"""What all movers share that journal their moves on this machine and have threads work on them.

Any process may poll any handle: whoever finds an unfinished move that nobody works on goes on with it.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

from filmloop.adapters.moving.deliver import make_dirs
from filmloop.adapters.moving.journal import CANCEL, LOCK, OUTCOME, REQUEST, MoveOutcome, MoveRequest, as_request
from filmloop.adapters.moving.thread import MoveThread
from filmloop.core.errors import DataError
from filmloop.core.fsio import create_json, disk_errors, try_lock
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem, MoveStatus

_JOIN_S = 30.0
"""So long a thread that was told to stop is waited for."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
Worker = TypeVar("Worker", bound=MoveThread)


class JournalledMover(ABC, Generic[Worker]):
    """`submit`, `poll` and `cancel` of `ports.mover.Mover`; what moves the bytes is the worker's business.

    Args:
        journal: Requests and outcomes; survives restarts.
        deadline_s: Counts from the start of each attempt.
        wedged_s: A worker that shows no end so long after its deadline is stuck.
    """

    def __init__(self, *, journal: Path, deadline_s: float, wedged_s: float) -> None:
        self.journal, self._deadline_s, self._wedged_s = journal, deadline_s, wedged_s
        self._workers: dict[str, Worker] = {}
        self._mutex = threading.Lock()

    @abstractmethod
    def check(self, request: MoveRequest) -> None:
        """Look at paths and sources before anything is journalled.

        Raises:
            DataError: a path leads outside, two files go to one place, or a source is absent or of another size.
        """

    @abstractmethod
    def worker(self, folder: Path, request: MoveRequest) -> Worker:
        """What works on the move that is journalled in `folder`; not started."""

    def at_work(self, folder: Path) -> bool:
        """Whether something elsewhere works on the move yet, although it failed here."""
        return False

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        """See `Mover.submit`. A move that failed or was cancelled is taken up again; what arrived is not sent twice."""
        request = as_request(direction, items, key)
        folder = self.folder(key)
        if not (folder / REQUEST).exists():
            self.check(request)
            make_dirs(folder)
            create_json(folder / REQUEST, request.as_json())
        if not MoveRequest.read(folder / REQUEST).same_move(request):
            raise DataError(
                f"Move {key!r} was submitted before with other files.",
                hint="A key stands for one set of files for ever; use another key.",
                ids={"key": key, "path": str(folder / REQUEST)},
            )
        outcome = self._outcome(key)
        if outcome is not None and outcome.state == "failed":
            self.check(request)
            self._reopen(key)
        if outcome is None or outcome.state == "failed":
            self._work_on(key)
        return key

    def poll(self, handle: str) -> MoveStatus:
        """See `Mover.poll`."""
        folder = self._known(handle)
        if outcome := self._outcome(handle):
            return outcome.as_status()
        self._raise_error(handle)
        worker = self._work_on(handle)
        if worker is not None:
            # Its own clock: the time of day may have been set forward meanwhile.
            wedged = self._wedged(handle) if worker.overdue(by_s=self._wedged_s) else None
            return wedged or MoveStatus(
                state="active", files_done=worker.files_done, bytes_done=worker.bytes_done, detail=worker.detail
            )
        return self._wedged(handle) or self.seen_from_outside(MoveRequest.read(folder / REQUEST))

    def cancel(self, handle: str) -> None:
        """See `Mover.cancel`. Takes effect at the worker's next step, whichever process it belongs to.

        Raises:
            DataError: no such handle.
        """
        folder = self._known(handle)
        if (outcome := self._outcome(handle)) is not None:
            if outcome.state == "succeeded" or not self.at_work(folder):
                return
            self._reopen(handle)
        with disk_errors(folder):
            (folder / CANCEL).touch()
        if worker := self._work_on(handle):
            worker.thread.join(_JOIN_S)

    def close(self) -> None:
        """End all threads of this instance; unfinished moves go on at the next poll of any instance."""
        with self._mutex:
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            worker.let_go()
        for worker in workers:
            worker.thread.join(_JOIN_S)

    def seen_from_outside(self, request: MoveRequest) -> MoveStatus:
        """Progress of a move that another process works on."""
        return MoveStatus(state="active")

    def folder(self, key: str) -> Path:
        """Where the move is journalled.

        Raises:
            DataError: `key` is no file name.
        """
        if not _KEY.fullmatch(key):
            raise DataError(f"{key!r} cannot name a move.", hint="Use up to 128 letters, digits and . _ : - in a key.")
        return self.journal / key

    def _known(self, handle: str) -> Path:
        folder = self.folder(handle)
        if not (folder / REQUEST).exists():
            raise DataError(
                f"There is no move {handle!r} in {self.journal}.",
                hint="Submit it again: files that arrived are not copied twice. `filmloop history` lists the cycles.",
                ids={"key": handle},
            )
        return folder

    def _outcome(self, key: str) -> MoveOutcome | None:
        path = self.journal / key / OUTCOME
        if path.exists():
            self._forget(key)
            return MoveOutcome.read(path)
        with self._mutex:
            worker = self._workers.get(key)
        return worker.outcome if worker is not None else None

    def _raise_error(self, key: str) -> None:
        """Tell once why a worker could not go on; the next poll tries again."""
        with self._mutex:
            worker = self._workers.get(key)
        if worker is not None and worker.error is not None:
            self._forget(key)
            raise worker.error

    def _reopen(self, key: str) -> None:
        """Forget a failure. Whoever wrote it down lets go of the lock a moment later."""
        self._forget(key)
        folder = self.journal / key

        def reopened() -> bool | None:
            with try_lock(folder / LOCK) as free:
                if not free:
                    return None if (folder / OUTCOME).exists() else True
                if (folder / OUTCOME).exists() and MoveOutcome.read(folder / OUTCOME).state == "succeeded":
                    return True
                (folder / CANCEL).unlink(missing_ok=True)
                (folder / OUTCOME).unlink(missing_ok=True)
                return True

        hint = "Is the file system there? Submit it again."
        wait_until(reopened, deadline_s=_JOIN_S, what=f"The end of move {key}", hint=hint, first_s=0.001)

    def _forget(self, key: str) -> None:
        with self._mutex:
            worker = self._workers.pop(key, None)
        if worker is not None:
            worker.thread.join(_JOIN_S)

    def _work_on(self, key: str) -> Worker | None:
        """The worker of this move in this process; None if another process has it or it has just ended."""
        folder = self.journal / key
        with self._mutex:
            worker = self._workers.get(key)
            if worker is not None and worker.thread.is_alive():
                return worker
            with try_lock(folder / LOCK) as free:
                if not free:
                    return None
            worker = self.worker(folder, MoveRequest.read(folder / REQUEST))
            self._workers[key] = worker
            worker.start()
            return worker

    def _wedged(self, key: str) -> MoveStatus | None:
        """A failure in place of a worker that did not even notice its deadline, e.g. on a hung file system."""
        lock = self.journal / key / LOCK
        if not lock.exists() or time.time() - lock.stat().st_mtime < self._deadline_s + self._wedged_s:
            return None
        with try_lock(lock) as free:
            if free:
                return None
        pid = lock.read_text(encoding="ascii").strip()
        return MoveStatus(state="failed", detail=f"Move {key} hangs in process {pid}: is the file system there?")
