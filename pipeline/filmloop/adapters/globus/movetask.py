"""The thread that works on one move through Globus: plan, submit, watch, audit, place. A crash anywhere is taken up here."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from filmloop.adapters.globus.attempts import Attempt, Attempts, SentTask
from filmloop.adapters.globus.audit import missing
from filmloop.adapters.globus.diagnose import ABSENT_CODES, CHECKSUM_CODES
from filmloop.adapters.globus.document import MAX_ITEMS, label, transfer_document
from filmloop.adapters.globus.ends import Ends
from filmloop.adapters.globus.place import FarSide, LostError
from filmloop.adapters.globus.renames import plan_renames, standing
from filmloop.adapters.globus.side import incoming
from filmloop.adapters.globus.transfer_client import Fault, TaskView, Transfer
from filmloop.adapters.globus.watch import VerdictError, Watch
from filmloop.adapters.local.deliver import below, check_content, is_delivered, settle
from filmloop.adapters.local.movejournal import MoveRequest
from filmloop.adapters.local.movethread import MoveThread, OverdueError
from filmloop.core.clock import epoch_s
from filmloop.core.errors import ConfigError, DataError, FilmloopError, TransientError

_CANCEL_S = 30.0
"""So long the end of cancelled tasks is waited for; what has not ended by then is seen to at the next call."""
_LONGEST_PAUSE_S = 60.0
_DEADLINE_MARGIN_S = 60.0
"""Clocks differ: a document so close to its deadline is not sent any more."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class GlobusMove(MoveThread):
    """One move between the edge, which is this machine, and the cluster, which is seen through its collection alone."""

    def __init__(self, folder: Path, request: MoveRequest, ends: Ends) -> None:
        super().__init__(folder, request, ends.section.deadline_s)
        self._ends, self._section = ends, ends.section
        self._items = [wire.as_item() for wire in request.items]
        self._up = request.direction == "to_cluster"
        self._incoming = incoming(request.key)
        self._attempts = Attempts(folder)
        self._far = FarSide(ends.cluster, request.key, self._ask)
        self._transfer: Transfer | None = None
        self._across: set[int] = set()

    def move(self) -> None:
        """See `MoveThread.move`."""
        try:
            self._go_on()
        except VerdictError as verdict:
            self._give_up(str(verdict))
            raise verdict.error from verdict
        except (OverdueError, DataError, ConfigError) as exc:
            self._give_up(exc.message)
            raise
        except LostError:
            if attempt := self._attempts.latest():
                self._attempts.keep(attempt, state="failed")
            raise
        finally:
            self._close()

    def cancelled(self) -> None:
        """See `MoveThread.cancelled`."""
        self._give_up("cancelled")
        self._close()

    def tidy(self, *, succeeded: bool) -> None:
        """Remove empty folders on this side; what a failed move has brought is kept for the next attempt."""
        if succeeded and not self._up:
            shutil.rmtree(self._ends.edge_root / self._incoming, ignore_errors=True)

    def _go_on(self) -> None:
        self.keep_on()
        attempt = self._unfinished()
        while True:
            flaw: FilmloopError | None = None
            resumed = attempt is not None
            if attempt is None:
                self._ends.discards.settle([self._incoming, *self._targets()], ask=self._ask, pause=self.pause)
                send, flaw = self._plan_up() if self._up else self._plan_home()
                attempt = self._open(send) if send else None
            if attempt is not None:
                attempt = self._finish(attempt)
            if flaw is not None:
                raise flaw
            if not resumed and (attempt is None or attempt.state == "placed"):
                self._count(range(len(self._items)))
                return
            attempt = None

    def _targets(self) -> list[str]:
        return [item.target_path for item in self._items] if self._up else []

    def _unfinished(self) -> Attempt | None:
        """The attempt that a crash cut off, if it goes on."""
        attempt = self._attempts.latest()
        if attempt is not None and attempt.state == "sent" and attempt.giving_up:
            self._cancel_tasks(attempt)
            attempt = self._attempts.latest()
        return attempt if attempt is not None and attempt.state in ("sent", "arrived") else None

    # What to send

    def _plan_up(self) -> tuple[list[int], FilmloopError | None]:
        """Numbers of the items to send, and what is wrong with the first one that may not be sent, if there is one."""
        placed = self._ends.placed.among(self._items)
        sizes = {item.target_path: item.size_bytes for item in self._items if item.target_path in placed}
        there = standing(sizes, self._far.listing) if sizes else set()
        if placed - there:
            self._ends.placed.forget(placed - there)
        self._count(number for number, item in enumerate(self._items) if item.target_path in there)
        send: list[int] = []
        for number, item in enumerate(self._items):
            if item.target_path in there:
                continue
            self.keep_on()
            try:
                check_content(item, below(self._ends.edge_root, item.source_path))
            except DataError as exc:
                return send, exc
            send.append(number)
        return send, None

    def _plan_home(self) -> tuple[list[int], FilmloopError | None]:
        send = []
        for number, item in enumerate(self._items):
            self.keep_on()
            if not is_delivered(item, below(self._ends.edge_root, item.target_path)):
                send.append(number)
        self._count(set(range(len(self._items))) - set(send))
        return send, None

    def _open(self, send: list[int]) -> Attempt:
        """Write everything down before anything is sent."""
        source, target = (self._ends.edge, self._ends.cluster) if self._up else (self._ends.cluster, self._ends.edge)
        tasks, documents = [], []
        for start in range(0, len(send), MAX_ITEMS):
            part = send[start : start + MAX_ITEMS]
            submission_id = self._ask(lambda t: t.submission_id())
            deadline = datetime.now(UTC) + timedelta(seconds=self._section.task_deadline_s)
            task = SentTask(
                submission_id=submission_id,
                label=label(self._ends.site, self.request.key, submission_id),
                deadline_utc=deadline.isoformat(timespec="seconds"),
                items=tuple(part),
            )
            tasks.append(task)
            documents.append(
                transfer_document(
                    [self._items[number] for number in part], source, target, self._incoming,
                    submission_id=submission_id, label=task.label, deadline_utc=task.deadline_utc,
                )
            )  # fmt: skip
        return self._attempts.open(tasks, documents)

    # What was sent

    def _finish(self, attempt: Attempt) -> Attempt:
        """From wherever the attempt is to all of its files in place; `failed` if it has to be made anew."""
        if attempt.state == "sent":
            attempt = self._submit(attempt)
            if attempt.state == "failed":
                return attempt
            skipped = [self._watch(task) for task in attempt.tasks]
            attempt = self._audit(attempt, skipped)
        return self._place_up(attempt) if self._up else self._place_home(attempt)

    def _submit(self, attempt: Attempt) -> Attempt:
        """Send what may not have reached Transfer yet: the same document again is the same task."""
        for number, task in enumerate(attempt.tasks):
            if task.task_id:
                continue
            task_id: str | None = None
            if epoch_s(task.deadline_utc) > time.time() + _DEADLINE_MARGIN_S:
                document = self._attempts.document(attempt, number)
                task_id = self._ask(lambda t, document=document: t.submit(document))  # type: ignore[misc]
            else:
                # Transfer refuses a deadline in the past, also of a document that it has taken before.
                task_id = self._ask(lambda t, name=task.label: t.find(name))  # type: ignore[misc]
            if task_id is None:
                self._give_up("its deadline passed before it was sent")
                return self._attempts.latest() or attempt
            attempt = self._attempts.keep_task(attempt, number, task_id=task_id)
            _log.info("move %s is Globus task %s", self.request.key, task_id)
        return attempt

    def _watch(self, task: SentTask) -> TaskView:
        files, size_bytes = self.files_done, self.bytes_done

        def tell(view: TaskView, text: str) -> None:
            self.files_done, self.bytes_done, self.detail = files + view.files, size_bytes + view.bytes, text

        watch = Watch(
            task.task_id, size_bytes=sum(self._items[number].size_bytes for number in task.items),
            ask=self._ask, pause=self.pause, poll_s=self._section.poll_s,
            stall_s=self._section.stall_s, look=self._look, tell=tell,
        )  # fmt: skip
        view = watch.until_done()
        self._count(task.items)
        return view

    def _look(self, fault: Fault) -> None:
        """Is it the data's fault? Only a source that is gone or has changed is; all else may pass."""
        if fault.code not in ABSENT_CODES | CHECKSUM_CODES:
            return
        suspects = [item for item in self._items if not fault.path or fault.path.endswith(f"/{item.source_path}")]
        if self._up:
            for item in suspects or self._items:
                check_content(item, below(self._ends.edge_root, item.source_path))
        elif fault.code in ABSENT_CODES and suspects:
            cluster, item = self._ends.cluster, suspects[0]
            if self._ask(lambda t: t.stat(cluster.collection, cluster.path(item.source_path))) is None:
                raise DataError(
                    f"{item.source_path} is not at the cluster.", hint="Was its run folder cleaned up? Train again."
                )

    def _audit(self, attempt: Attempt, ended: list[TaskView]) -> Attempt:
        if self._up:
            problems = []
            for task, view in zip(attempt.tasks, ended, strict=True):
                arrivals = self._ask(lambda t, one=task.task_id: list(t.arrivals(one)))  # type: ignore[misc]
                sent = [self._items[number] for number in task.items]
                problems += missing(sent, arrivals, self._incoming, skipped=view.skipped)
        else:
            problems = self._damaged_at_home(attempt)
        if problems:
            self._attempts.keep(attempt, state="failed")
            raise TransientError(
                f"Globus says that move {self.request.key} succeeded, but {'; '.join(problems[:3])}.",
                hint="What is wrong is sent again.",
            )
        return self._attempts.keep(attempt, state="arrived")

    def _damaged_at_home(self, attempt: Attempt) -> list[str]:
        """Files that are not here as they should be; they are removed."""
        problems = []
        for number in attempt.items:
            self.keep_on()
            item = self._items[number]
            arrived = self._ends.edge_root / self._incoming / item.target_path
            if not is_delivered(item, arrived) and not is_delivered(
                item, below(self._ends.edge_root, item.target_path)
            ):
                problems.append(f"{item.target_path} {'arrived damaged' if arrived.exists() else 'is not here'}")
                with suppress(OSError):
                    arrived.unlink(missing_ok=True)
        return problems

    # What has arrived

    def _place_up(self, attempt: Attempt) -> Attempt:
        items = [self._items[number] for number in attempt.items]
        sizes = {item.target_path: item.size_bytes for item in items}
        if attempt.steps is None:
            attempt = self._attempts.keep(attempt, steps=tuple(plan_renames(list(sizes), self._far.listing)))
        steps = attempt.steps or ()
        for number in range(attempt.steps_done, len(steps)):
            self.keep_on()
            self.detail = f"placing {steps[number].path}"
            self._far.take(steps[number], sizes)
            attempt = self._attempts.keep(attempt, steps_done=number + 1)
        self._far = FarSide(self._ends.cluster, self.request.key, self._ask)
        self._ends.placed.add(items)
        return self._attempts.keep(attempt, state="placed")

    def _place_home(self, attempt: Attempt) -> Attempt:
        root = self._ends.edge_root
        arrived = root / self._incoming
        settle(
            [(arrived / item.target_path, below(root, item.target_path)) for item in map(self._items.__getitem__, attempt.items)]
        )  # fmt: skip
        return self._attempts.keep(attempt, state="placed")

    def _count(self, numbers: Iterable[int]) -> None:
        """These items are across."""
        self._across |= set(numbers)
        self.files_done = len(self._across)
        self.bytes_done = sum(self._items[number].size_bytes for number in self._across)

    # How it ends early

    def _give_up(self, reason: str) -> None:
        """No task may write later that nobody waits for."""
        attempt = self._attempts.latest()
        if attempt is None or attempt.state != "sent":
            return
        attempt = self._attempts.keep(attempt, giving_up=reason)
        try:
            self._cancel_tasks(attempt)
        except FilmloopError as exc:
            _log.warning("the tasks of move %s were not cancelled: %s", self.request.key, exc.message)

    def _cancel_tasks(self, attempt: Attempt) -> None:
        """Cancel what still runs and see it end; an attempt whose tasks have succeeded meanwhile goes on instead.

        Raises:
            TransientError: a task has not ended yet, or the service is away; the next call sees to it.
        """
        transfer, end_s = self._open_transfer(), time.monotonic() + _CANCEL_S
        views = []
        for number, task in enumerate(attempt.tasks):
            task_id = task.task_id or transfer.find(task.label)
            if not task_id:
                continue
            attempt = self._attempts.keep_task(attempt, number, task_id=task_id)
            transfer.cancel(task_id)
            while (view := transfer.task(task_id)) is not None and not view.ended:
                if time.monotonic() > end_s:
                    raise TransientError(f"Globus task {task_id} was cancelled, but has not ended yet.")
                time.sleep(min(self._section.poll_s, 1.0))
            views.append(view)
        done = len(views) == len(attempt.tasks) and all(view and view.status == "SUCCEEDED" for view in views)
        self._attempts.keep(attempt, giving_up="", state="sent") if done else self._attempts.keep(
            attempt, state="failed"
        )

    # Requests

    def _ask(self, send: Callable[[Transfer], T]) -> T:
        """The answer; while the service is away, again and again for as long as a task may stall."""
        pause_s, end_s = max(self._section.poll_s, 0.1), time.monotonic() + self._section.stall_s
        while True:
            self.keep_on()
            try:
                return send(self._open_transfer())
            except TransientError as exc:
                if isinstance(exc, OverdueError | LostError) or time.monotonic() > end_s:
                    raise
                self.detail = exc.message
                _log.info("move %s waits: %s", self.request.key, exc.message)
            self.pause(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _open_transfer(self) -> Transfer:
        if self._transfer is None:
            self._transfer = self._ends.open("data" if self._up else "weights")
        return self._transfer

    def _close(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
