"""Moves files between two folders of one machine as if they lay on two, with the promises of `ports.mover`.

Any process may poll any handle: whoever finds an unfinished move that nobody works on goes on with it.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.local.deliver import below, check_source, make_dirs
from filmloop.adapters.local.movejournal import CANCEL, LOCK, OUTCOME, REQUEST, MoveOutcome, MoveRequest, as_request
from filmloop.adapters.local.moveworker import MoveWorker
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.core.errors import DataError
from filmloop.core.fsio import create_json, disk_errors, try_lock
from filmloop.core.retry import wait_until
from filmloop.ports.mover import Direction, MoveItem, MoveStatus

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_WEDGED_S = 30.0
"""A worker looks at its deadline between blocks of 8 MiB; this much later it is stuck in the kernel."""
_log = logging.getLogger(__name__)


class LocalMover:
    """Verified copies between `edge_root` and `cluster_root`; see `ports.mover.Mover`.

    Args:
        edge_root: Paths of the edge's side are relative to this folder.
        cluster_root: Paths of the cluster's side are relative to this folder.
        journal: Requests and outcomes; survives restarts.
        section: The site file's `[mover]`. `deadline_s` counts from the start of each attempt.
    """

    def __init__(self, *, edge_root: Path, cluster_root: Path, journal: Path, section: MoverSection) -> None:
        self._roots = {"to_cluster": (edge_root, cluster_root), "to_edge": (cluster_root, edge_root)}
        self._journal, self._section = journal, section
        self._workers: dict[str, MoveWorker] = {}
        self._mutex = threading.Lock()

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        """See `Mover.submit`. A move that failed or was cancelled is taken up again; what arrived is not copied twice."""
        request = as_request(direction, items, key)
        folder = self._folder(key)
        if not (folder / REQUEST).exists():
            self._check(request)
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
            self._check(request)
            self._reopen(key)
        if outcome is None or outcome.state == "failed":
            self._work_on(key)
        return key

    def poll(self, handle: str) -> MoveStatus:
        """See `Mover.poll`."""
        folder = self._known(handle)
        if outcome := self._outcome(handle):
            return outcome.as_status()
        worker = self._work_on(handle)
        if worker is not None:
            return self._wedged(handle) or MoveStatus(
                state="active", files_done=worker.files_done, bytes_done=worker.bytes_done
            )
        return self._wedged(handle) or self._seen_from_outside(folder)

    def cancel(self, handle: str) -> None:
        """See `Mover.cancel`. Takes effect within one block of 8 MiB, whichever process copies it.

        Raises:
            DataError: no such handle.
        """
        folder = self._known(handle)
        if self._outcome(handle) is not None:
            return
        with disk_errors(folder):
            (folder / CANCEL).touch()
        if worker := self._work_on(handle):
            worker.thread.join(_WEDGED_S)

    def discard(self, paths: Sequence[str], *, key: str) -> None:
        """See `Mover.discard`.

        Raises:
            DataError: a path leads out of the cluster's root; nothing was deleted.
        """
        _, cluster_root = self._roots["to_cluster"]
        places = [below(cluster_root, path) for path in paths]
        for place in places:
            with disk_errors(place), suppress(FileNotFoundError):
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
        _log.info("discarded %d paths below %s (%s)", len(places), cluster_root, key)

    def close(self) -> None:
        """End all threads of this instance; unfinished moves go on at the next poll of any instance."""
        with self._mutex:
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            worker.let_go()
        for worker in workers:
            worker.thread.join(_WEDGED_S)

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise DataError(f"{key!r} cannot name a move.", hint="Use up to 128 letters, digits and . _ : - in a key.")
        return self._journal / key

    def _known(self, handle: str) -> Path:
        folder = self._folder(handle)
        if not (folder / REQUEST).exists():
            raise DataError(
                f"There is no move {handle!r} in {self._journal}.",
                hint="Submit it again: files that arrived are not copied twice. `filmloop history` lists the cycles.",
                ids={"key": handle},
            )
        return folder

    def _check(self, request: MoveRequest) -> None:
        source_root, target_root = self._roots[request.direction]
        targets = [below(target_root, item.target_path) for item in request.items]
        if len(set(targets)) != len(targets):
            raise DataError(f"Move {request.key!r} sends two files to one place.", ids={"key": request.key})
        for item in request.items:
            check_source(item.as_item(), below(source_root, item.source_path))

    def _outcome(self, key: str) -> MoveOutcome | None:
        path = self._journal / key / OUTCOME
        if path.exists():
            self._forget(key)
            return MoveOutcome.read(path)
        with self._mutex:
            worker = self._workers.get(key)
        return worker.outcome if worker is not None else None

    def _reopen(self, key: str) -> None:
        """Forget a failure. Whoever wrote it down lets go of the lock a moment later."""
        self._forget(key)
        folder = self._journal / key

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
        wait_until(reopened, deadline_s=_WEDGED_S, what=f"The end of move {key}", hint=hint, first_s=0.001)

    def _forget(self, key: str) -> None:
        with self._mutex:
            worker = self._workers.pop(key, None)
        if worker is not None:
            worker.thread.join(_WEDGED_S)

    def _work_on(self, key: str) -> MoveWorker | None:
        """The worker of this move in this process; None if another process has it or it has just ended."""
        folder = self._journal / key
        with self._mutex:
            worker = self._workers.get(key)
            if worker is not None and worker.thread.is_alive():
                return worker
            with try_lock(folder / LOCK) as free:
                if not free:
                    return None
            request = MoveRequest.read(folder / REQUEST)
            worker = MoveWorker(folder, request, self._roots[request.direction], self._section.deadline_s)
            self._workers[key] = worker
            return worker

    def _wedged(self, key: str) -> MoveStatus | None:
        """A failure in place of a worker that did not even notice its deadline, e.g. on a hung file system."""
        lock = self._journal / key / LOCK
        if not lock.exists() or time.time() - lock.stat().st_mtime < self._section.deadline_s + _WEDGED_S:
            return None
        with try_lock(lock) as free:
            if free:
                return None
        pid = lock.read_text(encoding="ascii").strip()
        return MoveStatus(state="failed", detail=f"Move {key} hangs in process {pid}: is the file system there?")

    def _seen_from_outside(self, folder: Path) -> MoveStatus:
        """Progress of a move that another process works on, told by the files that are in place."""
        request = MoveRequest.read(folder / REQUEST)
        _, target_root = self._roots[request.direction]
        done = [item for item in request.items if below(target_root, item.target_path).is_file()]
        return MoveStatus(state="active", files_done=len(done), bytes_done=sum(item.size_bytes for item in done))
