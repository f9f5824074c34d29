"""The tasks of a move: written down, submitted, cancelled. One document is one task, however often it is sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from filmloop.adapters.globus.transfer.attempts import Attempt, Attempts, SentTask
from filmloop.adapters.globus.transfer.document import MAX_ITEMS, label, transfer_document
from filmloop.adapters.globus.transfer.ends import Ends
from filmloop.adapters.globus.transfer.patience import Patience
from filmloop.adapters.globus.transfer.side import incoming
from filmloop.adapters.globus.transfer.watch import end_of
from filmloop.core.clock import epoch_s
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.ports.mover import Direction, MoveItem

_CANCEL_S = 30.0
"""So long the end of cancelled tasks is waited for, or as long as is left; what has not ended by then is seen to at the next call."""
_DEADLINE_MARGIN_S = 60.0
"""Clocks differ: a document so close to its deadline is not sent any more."""
_log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one move.

    Args:
        key: The move's.
        direction: Which way.
        items: All its items.
        attempts: Its journal.
        ends: The site.
        patience: Sends requests.
    """

    def __init__(
        self,
        key: str,
        direction: Direction,
        items: Sequence[MoveItem],
        attempts: Attempts,
        ends: Ends,
        patience: Patience,
    ) -> None:
        self._key, self._items, self._attempts, self._ends = key, items, attempts, ends
        self._source, self._target = (
            (ends.edge, ends.cluster) if direction == "to_cluster" else (ends.cluster, ends.edge)
        )
        self._patience = patience

    def open(self, send: Sequence[int]) -> Attempt:
        """A new attempt for these items, written down before anything is sent."""
        tasks, documents = [], []
        for start in range(0, len(send), MAX_ITEMS):
            part = send[start : start + MAX_ITEMS]
            submission_id = self._patience.ask(lambda t: t.submission_id())
            deadline = datetime.now(UTC) + timedelta(seconds=self._ends.section.task_deadline_s)
            task = SentTask(
                submission_id=submission_id,
                label=label(self._ends.site, self._key, submission_id),
                deadline_utc=deadline.isoformat(timespec="seconds"),
                items=tuple(part),
            )
            tasks.append(task)
            documents.append(
                transfer_document(
                    [self._items[number] for number in part], self._source, self._target, incoming(self._key),
                    submission_id=submission_id, label=task.label, deadline_utc=task.deadline_utc,
                    item_checksums=self._ends.section.item_checksums,
                )
            )  # fmt: skip
        return self._attempts.open(tasks, documents)

    def submit(self, attempt: Attempt) -> Attempt:
        """Send what may not have reached Transfer yet; the attempt is `failed` if it is too late for that.

        Raises:
            TransientError: it is too late, and the service is away.
        """
        for number, task in enumerate(attempt.tasks):
            if task.task_id:
                continue
            task_id = self._sent(attempt, number, task)
            if task_id is None:
                self.give_up("its deadline passed before it was sent")
                given_up = self._attempts.latest() or attempt
                if given_up.state != "failed":
                    raise TransientError(
                        f"{task.label!r} was not sent in time, and its place could not be cleared.",
                        hint="The next call sees to it.",
                    )
                return given_up
            attempt = self._attempts.keep_task(attempt, number, task_id=task_id)
            _log.info("move %s is Globus task %s", self._key, task_id)
        return attempt

    def _sent(self, attempt: Attempt, number: int, task: SentTask) -> str | None:
        margin_s = min(_DEADLINE_MARGIN_S, 0.1 * self._ends.section.task_deadline_s)
        if epoch_s(task.deadline_utc) > time.time() + margin_s:
            document = self._attempts.document(attempt, number)
            return self._patience.ask(lambda t: t.submit(document))
        # Transfer refuses a deadline in the past, also in a document that it has taken before.
        return self._patience.ask(lambda t: t.find(task.label))

    def give_up(self, reason: str) -> None:
        """No task may write later that nobody waits for; without an answer now, the next call sees to it."""
        try:
            attempt = self._attempts.latest()
            if attempt is not None and attempt.state == "sent":
                self.cancel(self._attempts.keep(attempt, giving_up=reason))
        except FilmloopError as exc:
            _log.warning("the tasks of move %s were not cancelled: %s", self._key, exc.message)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel what still runs and see it end; an attempt whose tasks have succeeded meanwhile goes on instead.

        Raises:
            TransientError: a task has not ended yet, or the service is away.
        """
        transfer = self._patience.transfer()
        end_s, succeeded = time.monotonic() + min(_CANCEL_S, transfer.left_s()), 0
        for number, task in enumerate(attempt.tasks):
            task_id = task.task_id or transfer.find(task.label)
            if not task_id:
                continue
            attempt = self._attempts.keep_task(attempt, number, task_id=task_id)
            view = end_of(
                task_id, ask=lambda send: send(transfer), pause=time.sleep,
                poll_s=min(self._ends.section.poll_s, 1.0), end_s=end_s,
            )  # fmt: skip
            succeeded += view is not None and view.status == "SUCCEEDED"
        if succeeded == len(attempt.tasks):
            self._attempts.keep(attempt, giving_up="")
        else:
            self._attempts.keep(attempt, state="failed")
