"""What the mover asks of Globus Transfer: a few requests, their answers in plain words.

The SDK's app and client are not safe to share between threads: every thread opens its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import globus_sdk

from filmloop.adapters.globus.bounded import UNBOUNDED, BoundedTransport, Bounds, bounded_retries
from filmloop.adapters.globus.errors import answered, globus_errors
from filmloop.adapters.globus.identity.auth import Role, open_app
from filmloop.config.globus import GlobusMover, GlobusSection

T = TypeVar("T")
_READINGS = 3
"""Times that a file is read to be hashed: to compare it, at the source, at the target."""
REPEATS = 2
"""By the SDK itself, within seconds: it must be some for tokens to be renewed. A longer wait is ours, and can be stopped."""
_EVENTS = 20
"""Errors that are looked at when a task is in trouble, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task as Transfer tells it; `status` alone does not say whether it will ever end.

    Attributes:
        status: ACTIVE, INACTIVE, SUCCEEDED or FAILED; paused, queued and endlessly retrying tasks are ACTIVE.
        nice: What it is doing now, in a word: OK, Queued, PERMISSION_DENIED, ...
        faults: Errors so far, passing ones among them.
        files: Transferred so far.
        bytes: Transferred so far.
        checksummed: Bytes that were hashed so far, on both sides.
        skipped: Files that were there already, by checksum.
        deleted: Paths that a deletion is done with.
        code: Of the error that ended it.
        reason: The error that ended it, in words.
    """

    status: str
    nice: str
    paused: bool
    faults: int
    files: int
    bytes: int
    checksummed: int
    skipped: int
    code: str
    reason: str
    deleted: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ("SUCCEEDED", "FAILED")

    @property
    def queued(self) -> bool:
        """Whether it waits for its turn, and nobody holds it."""
        return self.nice.casefold() == "queued" and not self.paused and not self.ended

    def progress(self, size_bytes: int) -> tuple[int, ...]:
        """Changes whenever something was done; a file of the `size_bytes` in all that is sent over and over does not count."""
        return (
            self.files,
            self.skipped,
            min(self.bytes, size_bytes),
            min(self.checksummed, _READINGS * size_bytes),
            self.deleted,
        )

    @classmethod
    def of(cls, body: Any) -> TaskView:
        """From the task document; a field that the service leaves out counts as none."""

        def number(name: str) -> int:
            return int(body.get(name) or 0)

        fatal = body.get("fatal_error") or {}
        return cls(
            status=str(body["status"]),
            nice=str(body.get("nice_status") or ""),
            paused=bool(body.get("is_paused")),
            faults=number("faults"),
            files=number("files_transferred"),
            bytes=number("bytes_transferred"),
            checksummed=number("bytes_checksummed"),
            skipped=number("files_skipped"),
            code=str(fatal.get("code") or ("CANCELED" if body.get("canceled_by_admin") else "")),
            deleted=number("subtasks_succeeded") if body.get("type") == "DELETE" else 0,
            reason=str(body.get("canceled_by_admin_message") or fatal.get("description") or ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error event of a task: its code, the file if it names one, and its words."""

    code: str
    path: str
    text: str

    @classmethod
    def of(cls, body: Any) -> Fault:
        """From an event; `details` is JSON in a string for most errors, plain text for others."""
        details, path = str(body.get("details") or ""), ""
        try:
            parsed = json.loads(details)
            context = parsed.get("context") or [{}]
            path = str(parsed.get("path") or context[0].get("path") or "")
            details = str((parsed.get("error") or {}).get("body") or parsed.get("message") or "")
        except (ValueError, AttributeError, LookupError):
            pass
        return cls(code=str(body.get("code")), path=path, text=details or str(body.get("description") or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A file that a task transferred, as it tells afterwards."""

    path: str
    size_bytes: int
    checksum: str
    algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name in a folder of a collection."""

    is_folder: bool
    size_bytes: int


class Missing(Exception):  # noqa: N818 - an answer, not an error
    """Something that a rename needs is not there."""


class Taken(Exception):  # noqa: N818 - an answer, not an error
    """There is something at the new name already."""


class Transfer:
    """Globus Transfer for one thread, as one identity, within bounds: no request outlives them.

    Every method raises `TransientError` (away, slow, busy), `AuthError` (login, consent, permission), `ConfigError`
    (refused) or `DataError` (no such path).
    """

    def __init__(self, globus: GlobusSection, section: GlobusMover, role: Role, bounds: Bounds = UNBOUNDED) -> None:
        self._role, self._bounds = role, bounds
        with globus_errors("Opening Globus Transfer", role=role):
            self._client = globus_sdk.TransferClient(
                app=open_app(globus, role, bounds=bounds),
                transport=BoundedTransport(section.request_timeout_s, bounds),
                retry_config=bounded_retries(REPEATS, bounds),
            )
            for side in (section.edge, section.cluster):
                if side.mapped:
                    self._client.add_app_data_access_scope(side.collection)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def left_s(self) -> float:
        """What is left for requests."""
        return self._bounds.left_s()

    def submission_id(self) -> str:
        """A number that makes one document one task, however often it is sent."""
        return self._ask("Asking for a submission id", lambda: str(self._client.get_submission_id()["value"]))

    def submit(self, document: dict[str, Any]) -> str:
        """Send a transfer or delete document; the task's id, the same one for the same document."""
        send = self._client.submit_delete if document["DATA_TYPE"] == "delete" else self._client.submit_transfer
        return self._ask(f"Submitting {document['label']!r}", lambda: str(send(document)["task_id"]))

    def find(self, label: str) -> str | None:
        """The id of the task with this label, if there is one."""

        def ask() -> str | None:
            found = self._client.task_list(filter={"label": f"={label}"}, limit=10)
            return next((str(task["task_id"]) for task in found if task.get("label") == label), None)

        return self._ask("Listing tasks", ask)

    def task(self, task_id: str) -> TaskView | None:
        """The task as it stands; None if Transfer has forgotten it."""
        return self._unless_missing(f"Asking for task {task_id}", lambda: TaskView.of(self._client.get_task(task_id)))

    def cancel(self, task_id: str) -> None:
        """Ask for the end of a task; one that has ended stays as it is."""
        self._unless_missing(f"Cancelling task {task_id}", lambda: self._client.cancel_task(task_id))

    def faults(self, task_id: str) -> list[Fault]:
        """The task's newest errors, newest first."""

        def ask() -> list[Fault]:
            events = self._client.task_event_list(task_id, limit=_EVENTS, query_params={"filter": "is_error:1"})
            return [Fault.of(event) for event in events if event.get("is_error")]

        return self._ask(f"Asking for the events of task {task_id}", ask)

    def pause_message(self, task_id: str) -> str:
        """Who paused the task, in their own words."""

        def ask() -> str:
            info = self._client.task_pause_info(task_id)
            sides = ("source", "destination")
            words = [info.get(f"{side}_pause_message{share}") for side in sides for share in ("", "_share")]
            words += [rule.get("message") for rule in info.get("pause_rules") or []]
            return " ".join(dict.fromkeys(str(text) for text in words if text))

        return self._ask(f"Asking who paused task {task_id}", ask)

    def arrivals(self, task_id: str) -> list[Arrival]:
        """Every file that a task which ended has transferred; those that were there already are not among them."""

        def ask() -> list[Arrival]:
            return [
                Arrival(
                    path=str(row["destination_path"]),
                    size_bytes=int(row.get("size") or 0),
                    checksum=str(row.get("checksum") or ""),
                    algorithm=str(row.get("checksum_algorithm") or ""),
                )
                for row in self._client.paginated.task_successful_transfers(task_id).items()
            ]

        return self._ask(f"Asking what task {task_id} transferred", ask)

    def listing(self, collection: str, path: str) -> dict[str, Entry] | None:
        """What is in a folder; None if there is no such folder."""

        def ask() -> dict[str, Entry]:
            rows = self._client.operation_ls(collection, path)
            return {
                str(row["name"]): Entry(is_folder=row.get("type") == "dir", size_bytes=int(row.get("size") or 0))
                for row in rows
            }

        return self._unless_missing(f"Listing {path}", ask)

    def stat(self, collection: str, path: str) -> Entry | None:
        """What is at a path; None if nothing is."""

        def ask() -> Entry:
            row = self._client.operation_stat(collection, path)
            return Entry(is_folder=row["type"] == "dir", size_bytes=int(row["size"] or 0))

        return self._unless_missing(f"Looking at {path}", ask)

    def rename(self, collection: str, old: str, new: str) -> None:
        """Give a file or folder another name.

        Raises:
            Missing: there is nothing at `old`, or no folder for `new`; also after a rename whose answer was lost.
            Taken: there is something at `new`.
        """
        self._file_operation(f"Renaming {old}", lambda: self._client.operation_rename(collection, old, new))

    def mkdir(self, collection: str, path: str) -> None:
        """Make a folder.

        Raises:
            Missing: its parent is absent.
            Taken: there is something already.
        """
        self._file_operation(f"Making {path}", lambda: self._client.operation_mkdir(collection, path))

    def _ask(self, what: str, send: Callable[[], T]) -> T:
        with globus_errors(what, role=self._role):
            return _sent(send)

    def _unless_missing(self, what: str, send: Callable[[], T]) -> T | None:
        with globus_errors(what, role=self._role):
            try:
                return _sent(send)
            except globus_sdk.TransferAPIError as exc:
                if _is_missing(exc):
                    return None
                raise

    def _file_operation(self, what: str, send: Callable[[], Any]) -> None:
        with globus_errors(what, role=self._role):
            try:
                _sent(send)
            except globus_sdk.TransferAPIError as exc:
                if _is_missing(exc):
                    raise Missing from exc
                if (exc.code or "").endswith("Exists"):
                    raise Taken from exc
                raise


def _sent(send: Callable[[], T]) -> T:
    return answered("Globus Transfer", send)


def _is_missing(exc: globus_sdk.TransferAPIError) -> bool:
    """Nothing is at a path, or no folder; an absent collection is another matter."""
    code = exc.code or ""
    return code.endswith("NotDirectory") or (
        exc.http_status == 404 and code.endswith("NotFound") and "Endpoint" not in code
    )
