"""What the mover's journal holds of one move.

<journal>/<key>/request.json   what to move; its presence is the submission
<journal>/<key>/lock           held by the process that works on it
<journal>/<key>/cancel         somebody wants it to stop
<journal>/<key>/outcome.json   how it ended
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from filmloop.core.clock import utc_now
from filmloop.core.documents import Document, Sha256
from filmloop.core.errors import DataError
from filmloop.core.wording import first_of
from filmloop.ports.mover import Direction, MoveItem, MoveStatus

REQUEST, OUTCOME, CANCEL, LOCK = "request.json", "outcome.json", "cancel", "lock"


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
    error: str = ""
    hint: str = ""
    retryable: bool = True
    ended_utc: str

    def as_status(self) -> MoveStatus:
        """The form that the port promises."""
        return MoveStatus(
            state=self.state,
            files_done=self.files_done,
            bytes_done=self.bytes_done,
            detail=self.detail,
            error=self.error,
            hint=self.hint,
            retryable=self.retryable,
        )


def as_request(direction: Direction, items: Sequence[MoveItem], key: str) -> MoveRequest:
    """The document for a submission.

    Raises:
        DataError: an item's size or hash is none.
    """
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
        raise DataError(f"Move {key!r} is not valid: {first_of(exc)}.", ids={"key": key}) from exc
