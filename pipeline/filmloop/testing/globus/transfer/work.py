"""What all tasks have in common while they are worked on: they end, wait, fail and try again for ever."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from typing import Any

from filmloop.testing.globus.transfer.collection import RefusedError
from filmloop.testing.globus.transfer.service import Service
from filmloop.testing.globus.transfer.task import Task

FILE_ERRORS = {
    "file_not_found": "FILE_NOT_FOUND",
    "permission_denied": "PERMISSION_DENIED",
    "quota_exceeded": "QUOTA_EXCEEDED",
    "no_space_left": "NO_SPACE_LEFT",
    "endpoint_error": "ENDPOINT_ERROR",
    "connection_reset": "CONNECTION_RESET",
}
"""Faults that make a file fail, and the code of their event. The task stays ACTIVE and tries the file again; with
`endless=True` also where it should fail, as with `fail_on_quota_errors`.
"""
_TICK_S = 0.02


class EndedError(Exception):
    """The task is over; its worker has nothing more to do."""


class Work(ABC):
    """Works on one task until it ends.

    Faults, asked for before each file, with `match` on `type`, `label`, `path` (at the destination), `file` (its last
    part) and `number` (files that are done):

    - `inactive`: the task becomes INACTIVE until a control request makes it ACTIVE
    - `paused`: an administrator's pause with `message`, until a control request ends it, or for `seconds`
    - `operator_cancel`: an administrator cancels the task with `message`
    - `fail`: the task ends FAILED with `code`, `details`
    - `stall`: nothing happens for `seconds`
    - those of FILE_ERRORS
    """

    def __init__(self, service: Service, task: Task) -> None:
        self.service, self.hub, self.task = service, service.hub, task

    @abstractmethod
    def files(self) -> list[Any]:
        """What there is to do; called again after every round."""

    @abstractmethod
    def handle(self, file: Any) -> None:
        """Do one of it.

        Raises:
            RefusedError: it failed; it is tried again.
            OSError: the same.
        """

    @abstractmethod
    def name_of(self, file: Any) -> str:
        """Its path at the destination."""

    def run(self) -> None:
        """Work until the task ends."""
        task = self.task
        try:
            self.keep_on()
            with self.hub.lock:
                task.nice_status = "OK"
                task.tell("STARTED")
            while True:
                failed = self._round()
                if not failed:
                    break
                with self.hub.lock:
                    task.subtasks_retrying = failed
                self.wait(self.service.settings.retry_s)
            with self.hub.lock:
                task.end("SUCCEEDED", "SUCCEEDED")
        except EndedError:
            pass

    def _round(self) -> int:
        failed = 0
        try:
            todo = self.files()
        except (RefusedError, OSError) as exc:
            self._tell(exc)
            return 1
        for file in todo:
            self.keep_on()
            try:
                self._faults(self.name_of(file))
                self.handle(file)
            except (RefusedError, OSError) as exc:
                failed += 1
                self.failed(file, exc)
        return failed

    def failed(self, file: Any, exc: Exception) -> None:
        """Something of the task failed."""
        self._tell(exc, self.name_of(file))

    def _tell(self, exc: Exception, path: str = "") -> None:
        """[choice] details of an error: JSON with the path and what the endpoint said."""
        code, said = code_of(exc)
        details = {"context": [{"operation": "file_transfer", "path": path}], "error": {"body": said}}
        with self.hub.lock:
            self.task.tell(code, json.dumps(details), is_error=True)

    def fault(self, name: str, path: str) -> dict[str, Any] | None:
        """What is to go wrong with a file now."""
        task = self.task
        last = path.rsplit("/", 1)[-1]
        return self.hub.fault(name, type=task.type, label=task.label, path=path, file=last, number=len(task.done))

    def _faults(self, path: str) -> None:
        if self.fault("inactive", path) is not None:
            with self.hub.lock:
                self.task.status = self.task.nice_status = "INACTIVE"
                self.task.tell("AUTH", "Credentials expired", is_error=True)
        paused = self.fault("paused", path)
        if paused is not None:
            with self.hub.lock:
                self.task.is_paused, self.task.nice_status = True, "PAUSED"
                self.task.pause_message = paused.get("message", "maintenance")
                self.task.tell("PAUSED")
            self._paused_for(paused.get("seconds"))
        cancelled = self.fault("operator_cancel", path)
        if cancelled is not None:
            with self.hub.lock:
                self.task.canceled_by_admin = "DESTINATION"
                self.task.canceled_by_admin_message = cancelled.get("message", "this task disturbs others")
                self.task.wants_cancel = True
        over = self.fault("fail", path)
        if over is not None:
            self.fail(over.get("code", "ENDPOINT_ERROR"), over.get("details", "an injected fault"))
        stall = self.fault("stall", path)
        if stall is not None:
            self.wait(float(stall.get("seconds", 3600)))
        self.keep_on()
        for name, code in FILE_ERRORS.items():
            asked = self.fault(name, path)
            if asked is not None:
                raise RefusedError(code, f"an injected fault: {path}", endless=bool(asked.get("endless")))

    def _paused_for(self, seconds: float | None) -> None:
        if seconds is None:
            return
        time.sleep(seconds)
        with self.hub.lock:
            self.task.is_paused, self.task.nice_status = False, "OK"
            self.task.tell("UNPAUSED")

    def fail(self, code: str, details: str) -> None:
        """End the task.

        Raises:
            EndedError: always.
        """
        with self.hub.lock:
            self.task.end("FAILED", code, details)
        raise EndedError

    def wait(self, seconds: float) -> None:
        """Wait, and notice an end meanwhile."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.keep_on()
            time.sleep(min(left_s, _TICK_S))

    def keep_on(self) -> None:
        """Go on, once the task is neither paused nor inactive.

        Raises:
            EndedError: it was cancelled, or its deadline passed.
        """
        while True:
            if self.task.ended:
                raise EndedError
            if self.task.wants_cancel:
                self.fail("CANCELED", self.task.canceled_by_admin_message or "canceled")
            if time.time() > self.task.deadline_s:
                self.fail("EXPIRED", "The deadline passed")  # [choice] the code
            if not self.task.is_paused and self.task.status == "ACTIVE":
                return
            time.sleep(_TICK_S)


def code_of(exc: Exception) -> tuple[str, str]:
    """How an event names what went wrong. [choice] where the operating system refused"""
    if isinstance(exc, RefusedError):
        return exc.code, exc.details
    names: dict[type[Exception], str] = {
        FileNotFoundError: "FILE_NOT_FOUND",
        PermissionError: "PERMISSION_DENIED",
        IsADirectoryError: "IS_A_DIRECTORY",
        NotADirectoryError: "NOT_A_DIRECTORY",
    }
    if isinstance(exc, OSError) and exc.errno == 28:
        return "NO_SPACE_LEFT", str(exc)
    return names.get(type(exc), "ENDPOINT_ERROR"), str(exc)
