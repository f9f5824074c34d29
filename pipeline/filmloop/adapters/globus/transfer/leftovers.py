"""What moves have left below `.incoming` that nobody needs any more."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from filmloop.adapters.globus.transfer.side import incoming
from filmloop.adapters.moving.journal import OUTCOME, REQUEST, MoveOutcome, MoveRequest
from filmloop.config.paths import UNSWEPT
from filmloop.core.clock import epoch_s
from filmloop.core.fsio import disk_errors

OVER = "over"
_KEEP_FAILED_S = 86400.0
"""What a failed move has brought is of use to the next attempt, for a day; less if nobody submits it again."""


class Leftovers:
    """Finds them by the journals of moves.

    Args:
        journal: The mover's.
        edge_root: The edge's folder.
        task_deadline_s: After it no task of a move writes any more.
    """

    def __init__(self, journal: Path, edge_root: Path, *, task_deadline_s: float) -> None:
        self._journal, self._edge_root, self._task_deadline_s = journal, edge_root, task_deadline_s

    def begin(self, key: str) -> None:
        """From now on the move may leave something, and it is not over."""
        folder = self._journal / key
        with disk_errors(folder):
            (folder / UNSWEPT).touch()
            (folder / OVER).unlink(missing_ok=True)

    def end(self, keys: Iterable[str]) -> None:
        """Nobody submits these moves again."""
        for key in keys:
            folder = self._journal / key
            if (folder / UNSWEPT).exists():
                with disk_errors(folder):
                    (folder / OVER).touch()

    def at_cluster(self) -> list[str]:
        """Keys of moves that are over and may have left something there; what they have left here is removed."""
        found = []
        for mark in self._journal.glob(f"*/{UNSWEPT}"):
            if not self._is_over(mark.parent):
                continue
            if MoveRequest.read(mark.parent / REQUEST).direction == "to_cluster":
                found.append(mark.parent.name)
            else:
                shutil.rmtree(self._edge_root / incoming(mark.parent.name), ignore_errors=True)
                self.swept([mark.parent.name])
        return found

    def swept(self, keys: Iterable[str]) -> None:
        """What these have left is seen to."""
        for key in keys:
            with disk_errors(self._journal / key):
                (self._journal / key / UNSWEPT).unlink(missing_ok=True)

    def _is_over(self, folder: Path) -> bool:
        """Whether nobody needs what the move has left: it is done, is not submitted again, or was left alone for long."""
        if (folder / OUTCOME).exists():
            outcome = MoveOutcome.read(folder / OUTCOME)
            ended_s = time.time() - epoch_s(outcome.ended_utc)
            return outcome.state == "succeeded" or (folder / OVER).exists() or ended_s > _KEEP_FAILED_S
        age_s = time.time() - epoch_s(MoveRequest.read(folder / REQUEST).submitted_utc)
        return age_s > _KEEP_FAILED_S + self._task_deadline_s
