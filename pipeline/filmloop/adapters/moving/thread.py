"""The thread that works on one journalled move, from its request to its outcome, whatever moves the bytes."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from filmloop.adapters.moving.journal import CANCEL, LOCK, OUTCOME, MoveOutcome, MoveRequest
from filmloop.core.clock import utc_now
from filmloop.core.errors import AuthError, ConfigError, FilmloopError, TransientError
from filmloop.core.fsio import try_lock

_TICK_S = 0.1
"""A pause looks so often whether somebody cancelled the move or its process lets it go."""
_BUG = "That is a bug: the log has its traceback. The next cycle sends the files again."
_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Raised between two steps of a move that somebody cancelled or that its process lets go."""


class OverdueError(TransientError):
    """A move passed its deadline."""


class MoveThread(ABC):
    """One thread that works on one move until it ended, or at once gives way to another process that does.

    Attributes:
        files_done: So far.
        bytes_done: So far.
        detail: What it waits for, in words.
        outcome: Once it ended.
        error: Why the thread gave up a move that has not ended: something that a person must see to first.
        thread: For joining.
    """

    def __init__(self, folder: Path, request: MoveRequest, deadline_s: float) -> None:
        self.folder, self.request, self.deadline_s = folder, request, deadline_s
        self._let_go = threading.Event()
        self._end_s = time.monotonic() + deadline_s
        self.files_done = 0
        self.bytes_done = 0
        self.detail = ""
        self.outcome: MoveOutcome | None = None
        self.error: FilmloopError | None = None
        self.thread = threading.Thread(target=self._run, name=f"move-{request.key}", daemon=True)

    def start(self) -> None:
        """Begin, once everything is set."""
        self._end_s = time.monotonic() + self.deadline_s
        self.thread.start()

    def let_go(self) -> None:
        """Stop at the next step and leave the move unfinished, for whoever polls it next."""
        self._let_go.set()

    @abstractmethod
    def move(self) -> None:
        """Move everything; call `keep_on` between steps.

        Raises:
            FilmloopError: why it failed.
        """

    @abstractmethod
    def tidy(self, *, succeeded: bool) -> None:
        """Remove what nobody needs of a move that ended."""

    def cancelled(self) -> None:  # noqa: B027 - most movers have nothing at work elsewhere
        """Stop what works on the move elsewhere, after somebody cancelled it."""

    def stopped(self) -> bool:
        """Whether somebody cancelled the move or its process lets it go."""
        return self._let_go.is_set() or (self.folder / CANCEL).exists()

    def overdue(self, *, by_s: float = 0.0) -> bool:
        """Whether the deadline has passed, and so long ago."""
        return self.left_s() < -by_s

    def left_s(self) -> float:
        """Until the deadline; negative once it has passed."""
        return self._end_s - time.monotonic()

    def keep_on(self) -> None:
        """Go on, unless the move was cancelled or takes too long.

        Raises:
            StoppedError: it was cancelled, or is left to whoever polls next.
            OverdueError: its deadline passed.
        """
        if self.stopped():
            raise StoppedError
        if self.overdue():
            raise OverdueError(
                f"Move {self.request.key} did not end within {self.deadline_s:g} s{f': {self.detail}' if self.detail else '.'}",
                hint="What arrived stays; submit it again to go on, or raise mover.deadline_s in the site file.",
            )

    def pause(self, seconds: float) -> None:
        """Wait, unless the move was cancelled or takes too long; raises as `keep_on` does."""
        end_s = time.monotonic() + seconds
        while True:
            self.keep_on()
            left_s = end_s - time.monotonic()
            if left_s <= 0 or self._let_go.wait(min(left_s, _TICK_S)):
                self.keep_on()
                return

    def _run(self) -> None:
        with try_lock(self.folder / LOCK) as free:
            if not free or (self.folder / OUTCOME).exists():
                return
            try:
                self.move()
                self._end("succeeded")
            except StoppedError:
                if not self._let_go.is_set():
                    self.cancelled()
                    self._end("failed", f"Move {self.request.key} was cancelled.")
            except (AuthError, ConfigError) as exc:
                self.error = exc
            except FilmloopError as exc:
                self._end("failed", exc.message, error=exc)
            except Exception as exc:
                _log.exception("move %s failed", self.request.key)
                self._end("failed", (told := f"{type(exc).__name__}: {exc}"), error=FilmloopError(told, hint=_BUG))

    def _end(
        self, state: Literal["succeeded", "failed"], detail: str = "", *, error: FilmloopError | None = None
    ) -> None:
        self.tidy(succeeded=state == "succeeded")
        outcome = MoveOutcome(
            state=state,
            files_done=self.files_done,
            bytes_done=self.bytes_done,
            detail=detail,
            error=type(error).__name__ if error else "",
            hint=error.hint if error else "",
            retryable=error is None or error.retryable,
            ended_utc=utc_now(),
        )
        try:
            outcome.write(self.folder / OUTCOME)
        except FilmloopError as exc:
            _log.warning("outcome of move %s not journalled: %s", self.request.key, exc.message)
        # Kept here as well, as the journal may lie on the very disk that is full; but only now, because whoever sees
        # an end in one process must see it in all.
        self.outcome = outcome
