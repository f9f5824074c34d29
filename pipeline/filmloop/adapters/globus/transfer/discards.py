"""Deletions at the cluster. They are tasks too: until one has ended, nothing may be placed where it deletes.

<journal>/.discards/<key>-<number>.json   a deletion that was asked for and may be under way
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.globus.transfer.document import delete_document, label
from filmloop.adapters.globus.transfer.patience import Ask
from filmloop.adapters.globus.transfer.side import Side, overlap
from filmloop.core.clock import epoch_s
from filmloop.core.documents import Document

_log = logging.getLogger(__name__)


class _Discard(Document):
    schema_version: Literal[1] = 1
    paths: tuple[str, ...]
    document: dict[str, Any]
    deadline_utc: str
    task_id: str = ""


class Discards:
    """The journal of deletions.

    Args:
        journal: The mover's.
        side: The cluster's folder.
        deadline_s: When Globus itself gives a deletion up.
        poll_s: Between two looks at one that is waited for.
    """

    def __init__(self, journal: Path, side: Side, *, deadline_s: float, poll_s: float) -> None:
        self._folder, self._side, self._deadline_s, self._poll_s = journal / ".discards", side, deadline_s, poll_s

    def submit(self, transfer: Transfer, paths: Sequence[str], *, site: str, key: str) -> None:
        """Ask for a deletion; it is written down before, and asked for again if the answer was lost.

        Raises:
            TransientError: the service is away.
        """
        for path, former in self._journalled():
            if not former.task_id and epoch_s(former.deadline_utc) > time.time():
                former.model_copy(update={"task_id": transfer.submit(former.document)}).write(path)
            elif epoch_s(former.deadline_utc) < time.time():
                path.unlink(missing_ok=True)
        submission_id = transfer.submission_id()
        deadline_utc = (datetime.now(UTC) + timedelta(seconds=self._deadline_s)).isoformat(timespec="seconds")
        name = label(site, key, submission_id)
        document = delete_document(
            paths, self._side, submission_id=submission_id, label=name, deadline_utc=deadline_utc
        )
        discard = _Discard(paths=tuple(paths), document=document, deadline_utc=deadline_utc)
        path = self._folder / f"{key}-{submission_id}.json"
        discard.write(path)
        discard.model_copy(update={"task_id": transfer.submit(document)}).write(path)

    def settle(self, targets: Iterable[str], *, ask: Ask, pause: Callable[[float], None]) -> None:
        """Wait for deletions under way that could take a file at one of `targets` with them."""
        wanted = list(targets)
        for path, discard in self._journalled():
            if any(overlap(one, other) for one in discard.paths for other in wanted):
                self._see_end(discard, ask, pause)
                path.unlink(missing_ok=True)

    def _see_end(self, discard: _Discard, ask: Ask, pause: Callable[[float], None]) -> None:
        task_id: str | None = discard.task_id
        if not task_id:
            late = epoch_s(discard.deadline_utc) < time.time()
            task_id = ask(lambda t: t.find(discard.document["label"]) if late else t.submit(discard.document))
        while task_id and (view := ask(lambda t: t.task(task_id))) is not None and not view.ended:
            pause(self._poll_s)

    def _journalled(self) -> Iterator[tuple[Path, _Discard]]:
        for path in sorted(self._folder.glob("*.json")):
            yield path, _Discard.read(path)
