"""How files travel between the edge and the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from filmloop.core.documents import FileDigest

Direction = Literal["to_cluster", "to_edge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveItem:
    """One file: paths relative to the roots of the two sides, with the size and hash it must have."""

    source_path: str
    target_path: str
    size_bytes: int
    sha256: str

    @classmethod
    def below(cls, folder: str, file: FileDigest, target_folder: str) -> MoveItem:
        """The item for `file` of a document in `folder`, bound for the same place below `target_folder`."""
        return cls(
            source_path=f"{folder}/{file.path}",
            target_path=f"{target_folder}/{file.path}",
            size_bytes=file.size_bytes,
            sha256=file.sha256,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveStatus:
    """Where a move stands.

    Attributes:
        detail: What it waits for, or why it failed, in words.
        error: Class of the error that ended it, a name of `core.errors`; '' if none did.
        hint: What that error says to do.
        retryable: Whether a failed move may be submitted again by itself.
    """

    state: Literal["active", "succeeded", "failed"]
    files_done: int = 0
    bytes_done: int = 0
    detail: str = ""
    error: str = ""
    hint: str = ""
    retryable: bool = True


class Mover(Protocol):
    """Moves files and proves that they arrived whole. Submit and poll; nothing here waits."""

    def submit(self, direction: Direction, items: Sequence[MoveItem], *, key: str) -> str:
        """Start moving; returns a handle that survives a restart of the caller.

        Idempotent: the same `key` and items start one move however often this is called, and return the same handle.
        A move that failed or was cancelled is taken up again; what arrived is not sent twice.
        Files appear at their target paths only whole and verified, in the order of the items; until then they lie
        under `.incoming`.

        Raises:
            DataError: a source file is absent or is not what its item says.
            TransientError: the service is away.
        """

    def poll(self, handle: str) -> MoveStatus:
        """Where the move stands; cheap, never blocks for long. Finishing work that a crash cut off happens here.

        A failure that is not `retryable` is not to be submitted again by itself: the data are at fault, or a person at the
        service has stopped it.

        Raises:
            DataError: no such handle.
            AuthError: a login, consent or permission is missing; the move goes on at the next poll after it is given.
            ConfigError: the service refuses what the site file asks for.
        """

    def cancel(self, handle: str) -> None:
        """Stop a move; one that has ended stays as it is.

        Raises:
            DataError: no such handle.
        """

    def discard(self, paths: Sequence[str], *, key: str, over: Sequence[str] = ()) -> None:
        """Delete files or folders below the cluster's root that nobody needs any more; absent ones are fine.

        They may go a while after the call. What is moved there later is sent in full and stays.
        `over` are handles of moves that nobody submits again: what they have brought and not placed goes too, on both sides.

        Raises:
            DataError: a path leads out of the root; nothing is deleted.
            TransientError: the service is away.
            AuthError: a login or permission is missing.
        """

    def placed(self, folder: str) -> list[str]:
        """Paths of the files that moves have placed in a folder of the cluster and that nobody has discarded.

        Raises:
            DataError: `folder` leads out of the cluster's root.
        """
