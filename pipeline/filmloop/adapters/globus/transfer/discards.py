"""Deletions at the cluster. They are tasks too: until one has ended, nothing may be placed where it deletes.

<journal>/.discards/<key>-<number>.json   what is to be deleted, and the task that may be at it
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.globus.transfer.diagnose import ended_badly, words
from filmloop.adapters.globus.transfer.document import delete_document, label
from filmloop.adapters.globus.transfer.patience import Ask
from filmloop.adapters.globus.transfer.side import Side, overlap
from filmloop.adapters.globus.transfer.watch import VerdictError, Watch, end_of
from filmloop.core.clock import epoch_s
from filmloop.core.documents import Document
from filmloop.core.fsio import disk_errors, try_lock
from filmloop.core.retry import wait_until

_CANCEL_S = 30.0
"""So long the end of a cancelled deletion is waited for."""
_LOCK_S = 10.0
_TRIES = 20
"""Paths that so many tasks could not delete are a person's business."""
_log = logging.getLogger(__name__)


class _Discard(Document):
    """Paths to delete. Without a document they wait; without a `task_id` it may or may not have reached Transfer."""

    schema_version: Literal[1] = 1
    paths: tuple[str, ...]
    tries: int = 0
    document: dict[str, Any] | None = None
    sent_s: float = 0.0
    deadline_utc: str = ""
    task_id: str = ""


class Discards:
    """The journal of deletions.

    Args:
        journal: The mover's.
        side: The cluster's folder.
        site: Its name, for labels.
        deadline_s: When Globus itself gives a deletion up.
        stall_s: When we do, if it makes no progress.
        poll_s: Between two looks at one that is waited for.
    """

    def __init__(
        self, journal: Path, side: Side, *, site: str, deadline_s: float, stall_s: float, poll_s: float
    ) -> None:
        self._folder, self._lock = journal / ".discards", journal / ".discards.lock"
        self._side, self._site = side, site
        self._deadline_s, self._stall_s, self._poll_s = deadline_s, stall_s, poll_s

    def add(self, paths: Sequence[str], *, key: str) -> None:
        """Write down what is to be deleted; `send` sees to it, now or at a later call."""
        if paths:
            with disk_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            _Discard(paths=tuple(paths)).write(self._folder / f"{key}-{secrets.token_hex(4)}.json")

    def pending(self) -> bool:
        """Whether anything is to be deleted or is not known to be gone."""
        return any(True for _ in self._journalled())

    def send(self, transfer: Transfer) -> None:
        """Ask for all deletions that wait, after a look at the former ones; what those have failed to delete waits again.

        What failed before is a task of its own: one path that cannot be deleted holds up nothing new.

        Raises:
            TransientError: the service is away; the next call asks again.
        """
        in_trouble = [self._look_at(transfer, path, one) for path, one in self._journalled() if one.document]
        for again in (False, True):
            if not (again and any(in_trouble)):
                self._send(transfer, again=again)

    def settle(
        self, targets: Iterable[str], *, ask: Ask, pause: Callable[[float], None], tell: Callable[[str], None]
    ) -> None:
        """See to it that no deletion can take a file at one of `targets` with it, now or later.

        One that is under way is waited for, as long as it makes progress; then it is cancelled.
        """
        wanted = list(targets)
        while under_way := self.spare(wanted):
            for path, discard in under_way:
                self._see_end(path, discard, wanted, ask, pause, tell)

    def spare(self, wanted: Sequence[str]) -> list[tuple[Path, _Discard]]:
        """Take these places out of all deletions that wait; returns those that are under way and could touch them."""
        under_way = []
        with self._alone():
            for path, discard in self._journalled():
                if any(overlap(one, other) for one in discard.paths for other in wanted):
                    if discard.document is None:
                        self._keep(path, discard, but=wanted)
                    else:
                        under_way.append((path, discard))
        return under_way

    def _look_at(self, transfer: Transfer, path: Path, discard: _Discard) -> bool:
        """Whether the deletion is in trouble; one that is over is taken out of the journal, or waits again."""
        assert discard.document is not None
        task_id = discard.task_id or self._find(transfer, discard)
        view = transfer.task(task_id) if task_id else None
        if task_id and view is not None and not view.ended:
            fault = next(iter(transfer.faults(task_id)), None) if view.faults else None
            in_trouble = fault is not None or view.paused or view.status == "INACTIVE"
            if not in_trouble or time.time() - discard.sent_s < self._stall_s:
                discard.model_copy(update={"task_id": task_id}).write(path)
                return in_trouble
            _log.warning(
                "Globus deletion %s is cancelled: %s", task_id, words(fault) if fault else view.nice or view.status
            )
            view = end_of(
                task_id, ask=lambda send: send(transfer), pause=time.sleep, poll_s=min(self._poll_s, 1.0),
                end_s=time.monotonic() + min(_CANCEL_S, transfer.left_s()),
            )  # fmt: skip
        elif task_id and view is not None and view.status == "FAILED":
            fault = next(iter(transfer.faults(task_id)), None)
            _log.error("%s", ended_badly(task_id, view, fault, "data").message)
        if not task_id or (view is not None and view.status == "FAILED"):
            self._keep(path, discard)
        else:
            path.unlink(missing_ok=True)
        return False

    def _send(self, transfer: Transfer, *, again: bool) -> None:
        if not any(self._waiting(again)):
            return
        submission_id = transfer.submission_id()
        deadline_utc = (datetime.now(UTC) + timedelta(seconds=self._deadline_s)).isoformat(timespec="seconds")
        with self._alone():
            waiting = list(self._waiting(again))
            if not waiting:
                return
            path, first = waiting[-1]
            paths = tuple(dict.fromkeys(one for _, discard in waiting for one in discard.paths))
            document = delete_document(
                paths,
                self._side,
                submission_id=submission_id,
                label=label(self._site, path.stem.rpartition("-")[0], submission_id),
                deadline_utc=deadline_utc,
            )
            sent = first.model_copy(
                update={
                    "paths": paths,
                    "tries": max(discard.tries for _, discard in waiting) + 1,
                    "document": document,
                    "sent_s": time.time(),
                    "deadline_utc": deadline_utc,
                }
            )
            sent.write(path)
            for merged, _ in waiting[:-1]:
                merged.unlink(missing_ok=True)
        sent.model_copy(update={"task_id": transfer.submit(document)}).write(path)
        _log.info("asked Globus to delete %d paths (%s)", len(paths), document["label"])

    def _waiting(self, again: bool) -> Iterator[tuple[Path, _Discard]]:
        return ((path, one) for path, one in self._journalled() if one.document is None and bool(one.tries) == again)

    def _see_end(
        self,
        path: Path,
        discard: _Discard,
        wanted: Sequence[str],
        ask: Ask,
        pause: Callable[[float], None],
        tell: Callable[[str], None],
    ) -> None:
        task_id = discard.task_id or ask(lambda t: self._find(t, discard))
        if not task_id:
            self._keep(path, discard, but=wanted)
            return
        watch = Watch(
            task_id, size_bytes=0, role="data", ask=ask, pause=pause, poll_s=self._poll_s, stall_s=self._stall_s,
            look=lambda fault: None, tell=lambda view, text: tell(f"waiting for deletion {task_id}: {text}"),
        )  # fmt: skip
        try:
            watch.until_done()
        except VerdictError as verdict:
            _log.error("a deletion is not waited for any longer: %s", verdict.error.message)
            view = end_of(
                task_id, ask=ask, pause=pause, poll_s=self._poll_s, end_s=time.monotonic() + _CANCEL_S
            )  # fmt: skip
            if view is not None and view.status == "FAILED":
                self._keep(path, discard, but=wanted)
                return
        path.unlink(missing_ok=True)

    def _find(self, transfer: Transfer, discard: _Discard) -> str | None:
        """The task of a deletion whose answer was lost. One that never arrived is sent now, unless it is too late."""
        assert discard.document is not None
        if epoch_s(discard.deadline_utc) < time.time():
            return transfer.find(discard.document["label"])
        return transfer.submit(discard.document)

    def _keep(self, path: Path, discard: _Discard, *, but: Sequence[str] = ()) -> None:
        """The paths wait for the next call, without those that a move is about to fill."""
        left = tuple(one for one in discard.paths if not any(overlap(one, other) for other in but))
        if left and discard.tries >= _TRIES:
            _log.error("given up after %d deletions, remove it by hand: %s", discard.tries, ", ".join(left))
            left = ()
        if left:
            _Discard(paths=left, tries=discard.tries).write(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else turns what waits into a task meanwhile."""
        with disk_errors(self._lock):
            self._lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            wait_until(
                lambda: stack.enter_context(try_lock(self._lock)) or None,
                deadline_s=_LOCK_S, what="The list of deletions", first_s=0.005, cap_s=0.05,
            )  # fmt: skip
            yield

    def _journalled(self) -> Iterator[tuple[Path, _Discard]]:
        for path in sorted(self._folder.glob("*.json")):
            yield path, _Discard.read(path)
