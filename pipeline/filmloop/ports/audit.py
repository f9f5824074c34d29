"""The record of every alias move: who moved what, when, why, from where to where."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from filmloop.core.documents import AliasMove


class AuditTrail(Protocol):
    """Alias moves with intent before and confirmation after, so that a crash in between can be told apart.

    A move that was begun is *pending* until it is ended or dropped; `filmloop.promotion.publish.settle` decides which,
    by what the registry says. All calls are durable when they return.
    """

    def alias_lock(self) -> AbstractContextManager[None]:
        """Hold this around reading an alias and moving it. Not reentrant; the kernel drops it when the process dies.

        Raises:
            TransientError: another process holds it and did not let go in time.
        """

    def begin_move(self, move: AliasMove) -> int:
        """Record the intent; returns the id for `end_move` or `drop_move`."""

    def end_move(self, move_id: int) -> None:
        """The registry took the move."""

    def drop_move(self, move_id: int) -> None:
        """The move never happened; it disappears from the pending ones."""

    def pending_moves(self) -> list[tuple[int, AliasMove]]:
        """Begun, neither ended nor dropped; oldest first."""

    def moves(self, model: str, alias: str | None = None, limit: int = 100) -> list[AliasMove]:
        """Ended moves of `model`, newest first; of one alias, or of all."""
