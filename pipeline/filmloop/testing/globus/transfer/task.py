"""A task: what was asked, where it stands, and the documents that tell it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

ENDED = ("SUCCEEDED", "FAILED")


@dataclass(kw_only=True)
class Event:
    """Something that happened to a task."""

    code: str
    details: str = ""
    is_error: bool = False
    time_s: float = field(default_factory=time.time)

    def document(self) -> dict[str, Any]:
        """As `event_list` shows it."""
        return {
            "DATA_TYPE": "event",
            "code": self.code,
            "is_error": self.is_error,
            "description": self.code.lower().replace("_", " "),
            "details": self.details,
            "time": time_text(self.time_s),
        }


@dataclass(kw_only=True)
class Moved:
    """A file that was transferred."""

    source_path: str
    destination_path: str
    size: int
    checksum: str | None
    checksum_algorithm: str | None

    def document(self) -> dict[str, Any]:
        """As `successful_transfers` shows it."""
        return {"DATA_TYPE": "successful_transfer", **asdict(self), "dynamic": False}


@dataclass(kw_only=True)
class Task:
    """A transfer or a deletion."""

    task_id: str
    submission_id: str
    owner: str
    type: str
    """TRANSFER or DELETE."""
    asked: dict[str, Any]
    """The document that was submitted."""
    request_s: float
    deadline_s: float
    status: str = "ACTIVE"
    label: str | None = None
    is_paused: bool = False
    pause_message: str = ""
    nice_status: str = "Queued"
    fatal_error: dict[str, str] | None = None
    completion_s: float | None = None
    canceled_by_admin: str | None = None
    canceled_by_admin_message: str | None = None
    faults: int = 0
    bytes_checksummed: int = 0
    bytes_transferred: int = 0
    directories: int = 0
    files: int = 0
    files_skipped: int = 0
    subtasks_retrying: int = 0
    wants_cancel: bool = False
    done: list[str] = field(default_factory=list)
    """Destination paths, or deleted paths, that need no more work."""
    moved: list[Moved] = field(default_factory=list)
    skipped_errors: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Task:
        """The task that the state folder holds."""
        return cls(
            **{
                **document,
                "moved": [Moved(**each) for each in document["moved"]],
                "events": [Event(**each) for each in document["events"]],
            }
        )

    def as_json(self) -> dict[str, Any]:
        """What `of` reads."""
        return asdict(self)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.status in ENDED

    def tell(self, code: str, details: str = "", *, is_error: bool = False) -> None:
        """Add an event; an error counts as a fault and becomes the task's nice status. [choice]"""
        self.events.append(Event(code=code, details=details, is_error=is_error))
        if is_error:
            self.faults += 1
            self.nice_status = code

    def end(self, status: str, code: str, details: str = "") -> None:
        """Nothing more happens. [choice] The fatal error has the code of the last event."""
        self.status, self.completion_s, self.is_paused = status, time.time(), False
        self.nice_status = "OK" if status == "SUCCEEDED" else code
        self.subtasks_retrying = 0
        self.tell(code, details)
        if status == "FAILED":
            self.fatal_error = {"code": code, "description": details}

    def document(self) -> dict[str, Any]:
        """As `GET /task/<id>` shows it."""
        asked = self.asked
        lasted_s = max((self.completion_s or time.time()) - self.request_s, 1e-3)
        pending = max(self.files - len(self.done), 0) if not self.ended else 0
        failed = max(self.files - len(self.done), 0) if self.status == "FAILED" else 0
        cancelled = self.fatal_error is not None and self.fatal_error["code"] == "CANCELED"
        return {
            "DATA_TYPE": "task",
            "task_id": self.task_id,
            "type": self.type,
            "status": self.status,
            "label": self.label,
            "owner_id": self.owner,
            "username": f"u_{self.owner[:8]}",
            "command": "API 0.10",
            "request_time": time_text(self.request_s),
            "deadline": time_text(self.deadline_s),
            "completion_time": None if self.completion_s is None else time_text(self.completion_s),
            "source_endpoint_id": asked.get("source_endpoint") or asked.get("endpoint"),
            "source_endpoint_display_name": "source",
            "destination_endpoint_id": asked.get("destination_endpoint"),
            "destination_endpoint_display_name": "destination" if "destination_endpoint" in asked else None,
            "is_paused": self.is_paused,
            "is_ok": None if self.ended else self.nice_status in ("OK", "Queued"),
            "nice_status": None if self.ended else self.nice_status,
            "nice_status_details": None,
            "nice_status_expires_in": None,
            "nice_status_short_description": None if self.ended else self.nice_status,
            "fatal_error": self.fatal_error,
            "faults": self.faults,
            "bytes_checksummed": self.bytes_checksummed,
            "bytes_transferred": self.bytes_transferred,
            "effective_bytes_per_second": int(self.bytes_transferred / lasted_s),
            "directories": self.directories,
            "files": self.files,
            "files_skipped": self.files_skipped,
            "files_transferred": len(self.moved),
            "symlinks": 0,
            "subtasks_total": self.files,
            "subtasks_succeeded": len(self.done) - len(self.skipped_errors),
            "subtasks_pending": max(pending - self.subtasks_retrying, 0),
            "subtasks_retrying": self.subtasks_retrying,
            "subtasks_failed": 0 if cancelled else failed,
            "subtasks_canceled": failed if cancelled else 0,
            "subtasks_expired": 0,
            "subtasks_skipped_errors": len(self.skipped_errors),
            "canceled_by_admin": self.canceled_by_admin,
            "canceled_by_admin_message": self.canceled_by_admin_message,
            "history_deleted": False,
            "sync_level": asked.get("sync_level"),
            "verify_checksum": asked.get("verify_checksum", False),
            "encrypt_data": asked.get("encrypt_data", False),
            "preserve_timestamp": asked.get("preserve_timestamp", False),
            "fail_on_quota_errors": asked.get("fail_on_quota_errors", False),
            "skip_source_errors": asked.get("skip_source_errors", False),
            "delete_destination_extra": asked.get("delete_destination_extra", False),
            "recursive_symlinks": "ignore",
            "filter_rules": None,
        }


def time_text(epoch_s: float) -> str:
    """A time as Transfer writes it."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds")
