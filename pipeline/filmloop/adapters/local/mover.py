"""Moves files between two folders of one machine as if they lay on two, with the promises of `ports.mover`.

    <journal>/<key>/request.json   what to move; its presence is the submission
    <journal>/<key>/lock           held by the process that works on it
    <journal>/<key>/cancel         somebody wants it to stop
    <journal>/<key>/outcome.json   how it ended

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
from typing import Literal

from pydantic import ValidationError

from filmloop.adapters.local.deliver import INCOMING, below, check_source, deliver, is_delivered, make_dirs
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.core.clock import utc_now
from filmloop.core.documents import Document, Sha256
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.fsio import create_json, disk_errors, fsync_dir, try_lock
from filmloop.ports.mover import Direction, MoveItem, MoveStatus

REQUEST, OUTCOME, CANCEL, LOCK = "request.json", "outcome.json", "cancel", "lock"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_WEDGED_S = 30.0
"""A worker looks at its deadline between blocks of 8 MiB; this much later it is stuck in the kernel."""
_log = logging.getLogger(__name__)


class _Item(Document):
    source_path: str
    target_path: str
    size_bytes: int
    sha256: Sha256

    def as_item(self) -> MoveItem:
        return MoveItem(
            source_path=self.source_path,
            target_path=self.target_path,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
        )


class MoveRequest(Document):
    """What was asked for; never changes."""

    schema_version: Literal[1] = 1
    key: str
    direction: Direction
    items: tuple[_Item, ...]
    submitted_utc: str

    def same_move(self, other: MoveRequest) -> bool:
        """Whether both ask for the same files to go the same way."""
        return (self.direction, self.items) == (other.direction, other.items)


class MoveOutcome(Document):
    """How a move ended."""

    schema_version: Literal[1] = 1
    state: Literal["succeeded", "failed"]
    files_done: int = 0
    bytes_done: int = 0
    detail: str = ""
    retryable: bool = True
    ended_utc: str

    def as_status(self) -> MoveStatus:
        """The form that the port promises."""
        return MoveStatus(
            state=self.state,
            files_done=self.files_done,
            bytes_done=self.bytes_done,
            detail=self.detail,
            retryable=self.retryable,
        )


class _StoppedError(Exception):
    """Raised between two blocks of a move that somebody cancelled or that its process lets go."""


class _Worker:
    """One thread that works on one move until it ended."""

    def __init__(self, folder: Path, request: MoveRequest, roots: tuple[Path, Path], deadline_s: float) -> None:
        self._folder, self._request, self._deadline_s = folder, request, deadline_s
        self._source_root, self._target_root = roots
        self._incoming = self._target_root / INCOMING / request.key
        self._let_go = threading.Event()
        self.files_done = 0
        self.bytes_done = 0
        self.outcome: MoveOutcome | None = None
        self.thread = threading.Thread(target=self._run, name=f"move-{request.key}", daemon=True)
        self.thread.start()

    def let_go(self) -> None:
        """Stop at the next block and leave the move unfinished, for whoever polls it next."""
        self._let_go.set()

    def _run(self) -> None:
        with try_lock(self._folder / LOCK) as free:
            if not free or (self._folder / OUTCOME).exists():
                return
            try:
                self._move()
                self._end("succeeded")
            except _StoppedError:
                if not self._let_go.is_set():
                    self._end("failed", f"Move {self._request.key} was cancelled.")
            except FilmloopError as exc:
                self._end("failed", f"{exc.message} {exc.hint}".strip(), retryable=exc.retryable)
            except Exception as exc:
                _log.exception("move %s failed", self._request.key)
                self._end("failed", f"{type(exc).__name__}: {exc}", retryable=False)

    def _move(self) -> None:
        end_s = time.monotonic() + self._deadline_s

        def keep_on() -> None:
            if self._let_go.is_set() or (self._folder / CANCEL).exists():
                raise _StoppedError
            if time.monotonic() > end_s:
                raise TransientError(
                    f"Move {self._request.key} did not end within {self._deadline_s:g} s.",
                    hint="What arrived stays; submit it again to go on, or raise mover.deadline_s in the site file.",
                )

        keep_on()
        make_dirs(self._incoming)
        unsynced: Path | None = None
        for number, wire in enumerate(self._request.items):
            keep_on()
            item = wire.as_item()
            target = below(self._target_root, item.target_path)
            # In the order of the items, power cut or not: a manifest that is listed last appears last.
            if unsynced is not None and unsynced != target.parent:
                fsync_dir(unsynced)
            if not is_delivered(item, target):
                source = below(self._source_root, item.source_path)
                deliver(item, source, target, self._incoming / str(number), keep_on=keep_on)
            unsynced = target.parent
            self.files_done += 1
            self.bytes_done += item.size_bytes
        if unsynced is not None:
            fsync_dir(unsynced)

    def _end(self, state: Literal["succeeded", "failed"], detail: str = "", *, retryable: bool = True) -> None:
        shutil.rmtree(self._incoming, ignore_errors=True)
        # Kept here as well: the journal may lie on the very disk that is full.
        self.outcome = MoveOutcome(
            state=state,
            files_done=self.files_done,
            bytes_done=self.bytes_done,
            detail=detail,
            retryable=retryable,
            ended_utc=utc_now(),
        )
        try:
            self.outcome.write(self._folder / OUTCOME)
        except FilmloopError as exc:
            _log.warning("outcome of move %s not journalled: %s", self._request.key, exc.message)


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
        self._workers: dict[str, _Worker] = {}
        self._mutex = threading.Lock()

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        """See `Mover.submit`. A move that failed or was cancelled is taken up again; what arrived is not copied twice."""
        request = _as_request(direction, items, key)
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
        self._forget(key)
        with try_lock(self._journal / key / LOCK) as free:
            if free:
                (self._journal / key / CANCEL).unlink(missing_ok=True)
                (self._journal / key / OUTCOME).unlink(missing_ok=True)

    def _forget(self, key: str) -> None:
        with self._mutex:
            worker = self._workers.pop(key, None)
        if worker is not None:
            worker.thread.join(_WEDGED_S)

    def _work_on(self, key: str) -> _Worker | None:
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
            worker = _Worker(folder, request, self._roots[request.direction], self._section.deadline_s)
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


def _as_request(direction: Direction, items: Sequence[MoveItem], key: str) -> MoveRequest:
    try:
        wire = tuple(
            _Item(
                source_path=item.source_path,
                target_path=item.target_path,
                size_bytes=item.size_bytes,
                sha256=item.sha256,
            )
            for item in items
        )
        return MoveRequest(key=key, direction=direction, items=wire, submitted_utc=utc_now())
    except ValidationError as exc:
        first = exc.errors()[0]
        raise DataError(f"Move {key!r} is not valid: {first['loc']}: {first['msg']}.", ids={"key": key}) from exc
