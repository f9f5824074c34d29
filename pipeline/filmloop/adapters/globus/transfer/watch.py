"""Looks at a task until it ended, with limits of our own: a task that is paused, or fails and retries, is ACTIVE for days."""

from __future__ import annotations

import time
from collections.abc import Callable

from filmloop.adapters.globus.identity.who import Role
from filmloop.adapters.globus.transfer.client import Fault, TaskView
from filmloop.adapters.globus.transfer.diagnose import ended_badly, stalled, words
from filmloop.adapters.globus.transfer.patience import Ask
from filmloop.core.errors import DataError, FilmloopError, TransientError

_ALL_WELL = "OK"


def end_of(task_id: str, *, ask: Ask, pause: Callable[[float], None], poll_s: float, end_s: float) -> TaskView | None:
    """Cancel a task and see it end; None if Transfer has forgotten it. One that has ended stays as it is.

    Raises:
        TransientError: it has not ended at `end_s` of the monotonic clock, or Transfer is away.
    """
    ask(lambda t: t.cancel(task_id))
    while (view := ask(lambda t: t.task(task_id))) is not None and not view.ended:
        if time.monotonic() > end_s:
            raise TransientError(f"Globus task {task_id} was cancelled, but has not ended yet.")
        pause(poll_s)
    return view


class VerdictError(Exception):
    """Nothing good will come of the task; `error` says why."""

    def __init__(self, error: FilmloopError) -> None:
        super().__init__(error.message)
        self.error = error


class Watch:
    """One task under watch. At most one request goes out per `poll_s`.

    Args:
        task_id: Which.
        size_bytes: Of all its files.
        role: Who asks.
        ask: Sends a request.
        pause: Waits; raises when the move is to stop.
        poll_s: Between two requests.
        stall_s: So long without progress ends the watch.
        look: Called with an error of the task; raises `DataError` if the data are at fault.
        tell: Called with the task as it stands, and with what it waits for.
    """

    def __init__(
        self,
        task_id: str,
        *,
        size_bytes: int,
        role: Role,
        ask: Ask,
        pause: Callable[[float], None],
        poll_s: float,
        stall_s: float,
        look: Callable[[Fault], None],
        tell: Callable[[TaskView, str], None],
    ) -> None:
        self._task_id, self._size_bytes, self._role = task_id, size_bytes, role
        self._ask, self._pause = ask, pause
        self._poll_s, self._stall_s, self._look, self._tell = poll_s, stall_s, look, tell
        self._fault: Fault | None = None
        self._faults = 0
        self._pause_message = ""
        self._was_paused = False

    def until_done(self) -> TaskView:
        """The task once it has succeeded.

        Raises:
            VerdictError: it failed, or makes no progress.
            TransientError: Transfer is away, or has forgotten the task.
        """
        seen: tuple[int, ...] | None = None
        since_s = time.monotonic()
        while True:
            self._pause(self._poll_s)
            view = self._ask(lambda t: t.task(self._task_id))
            if view is None:
                raise VerdictError(TransientError(f"Transfer does not know task {self._task_id} any more."))
            progress = view.progress(self._size_bytes)
            if progress != seen or view.queued:
                seen, since_s = progress, time.monotonic()
            if view.status == "SUCCEEDED":
                return view
            self._ask_why(view)
            self._tell(view, self._words(view))
            if view.ended:
                raise VerdictError(ended_badly(self._task_id, view, self._fault, self._role))
            if (still_s := time.monotonic() - since_s) > self._stall_s:
                raise VerdictError(stalled(self._task_id, view, self._fault, self._pause_message, still_s, self._role))

    def _ask_why(self, view: TaskView) -> None:
        """Read the newest errors when there are more of them, and who paused it when somebody has."""
        if view.faults > self._faults or (view.status == "FAILED" and self._fault is None):
            self._pause(self._poll_s)
            self._faults = view.faults
            if found := self._ask(lambda t: t.faults(self._task_id)):
                self._take(found[0])
        if view.status == "FAILED":
            self._take(Fault(code=view.code, path="", text=view.reason))
        if view.paused and not self._was_paused:
            self._pause(self._poll_s)
            self._pause_message = self._ask(lambda t: t.pause_message(self._task_id))
        self._was_paused = view.paused

    def _take(self, fault: Fault) -> None:
        self._fault = fault if fault.code or self._fault is None else self._fault
        try:
            self._look(fault)
        except DataError as exc:
            raise VerdictError(exc) from exc

    def _words(self, view: TaskView) -> str:
        if view.paused:
            return f"paused: {self._pause_message}".rstrip(": ")
        if view.status == "INACTIVE":
            return "inactive: its login has ended"
        if self._fault is not None and view.faults:
            return f"{view.nice}; last error {words(self._fault)}".lstrip("; ")
        return "" if view.nice == _ALL_WELL else view.nice
