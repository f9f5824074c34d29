"""The thread that works on one move, from its request to its outcome."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Literal

from filmloop.adapters.local.deliver import INCOMING, below, deliver, is_delivered, make_dirs
from filmloop.adapters.local.movejournal import CANCEL, LOCK, OUTCOME, MoveOutcome, MoveRequest
from filmloop.core.clock import utc_now
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.fsio import fsync_dir, try_lock

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """Raised between two blocks of a move that somebody cancelled or that its process lets go."""


class MoveWorker:
    """One thread that works on one move until it ended, or at once gives way to another process that does.

    Attributes:
        files_done: So far.
        bytes_done: So far.
        outcome: Once it ended.
        thread: For joining.
    """

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
        outcome = MoveOutcome(
            state=state,
            files_done=self.files_done,
            bytes_done=self.bytes_done,
            detail=detail,
            retryable=retryable,
            ended_utc=utc_now(),
        )
        try:
            outcome.write(self._folder / OUTCOME)
        except FilmloopError as exc:
            _log.warning("outcome of move %s not journalled: %s", self._request.key, exc.message)
        # Kept here as well, as the journal may lie on the very disk that is full; but only now, because whoever sees
        # an end in one process must see it in all.
        self.outcome = outcome
