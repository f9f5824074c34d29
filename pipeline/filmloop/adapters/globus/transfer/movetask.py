"""The thread that works on one move through Globus: plan, submit, watch, audit, place. A crash anywhere is taken up here."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filmloop.adapters.globus.bounded import Bounds
from filmloop.adapters.globus.identity.who import Role
from filmloop.adapters.globus.transfer.attempts import Attempt, Attempts, SentTask
from filmloop.adapters.globus.transfer.audit import missing
from filmloop.adapters.globus.transfer.client import Arrival, Fault, TaskView
from filmloop.adapters.globus.transfer.diagnose import ABSENT_CODES, CHECKSUM_CODES, EXTERNAL_CHECKSUM
from filmloop.adapters.globus.transfer.ends import Ends
from filmloop.adapters.globus.transfer.patience import Patience
from filmloop.adapters.globus.transfer.place import FarSide, LostError
from filmloop.adapters.globus.transfer.renames import plan_renames, standing
from filmloop.adapters.globus.transfer.side import incoming, relative
from filmloop.adapters.globus.transfer.tasks import Tasks
from filmloop.adapters.globus.transfer.watch import VerdictError, Watch
from filmloop.adapters.moving.deliver import below, check_content, is_delivered, settle
from filmloop.adapters.moving.journal import MoveRequest
from filmloop.adapters.moving.thread import MoveThread, OverdueError, StoppedError
from filmloop.core.counted import counted
from filmloop.core.errors import ConfigError, DataError, FilmloopError, TransientError
from filmloop.ports.mover import MoveItem

_TO_CANCEL_S = 45.0
"""Time that is left for it when a move gives up at its deadline."""
_CANCEL_LEAST_S = 2.0
"""Of a move with a short deadline: a task that nobody cancels would go on."""
_log = logging.getLogger(__name__)


class GlobusMove(MoveThread):
    """One move between the edge, which is this machine, and the cluster, which is seen through its collection alone."""

    def __init__(self, folder: Path, request: MoveRequest, ends: Ends) -> None:
        deadline_s = ends.section.deadline_s
        # Whoever waits for the move has the same deadline: its tasks are cancelled before that.
        self._to_cancel_s = min(_TO_CANCEL_S, 0.1 * deadline_s)
        self._cancel_by_s: float | None = None
        super().__init__(folder, request, deadline_s - self._to_cancel_s)
        self._ends, self._section = ends, ends.section
        self._items = [_normal(wire.as_item()) for wire in request.items]
        self._up = request.direction == "to_cluster"
        self._role: Role = "data" if self._up else "weights"
        self._incoming = incoming(request.key)
        self._attempts = Attempts(folder)
        self._patience = Patience(
            lambda: ends.open(self._role, Bounds(left_s=self._request_s, unanswered=self._patience.unanswered)),
            pause=self.pause, keep_on=self.keep_on, first_s=max(self._section.poll_s, 0.1),
            give_up_s=self._section.stall_s, tell=self._tell,
        )  # fmt: skip
        self._tasks = Tasks(request.key, request.direction, self._items, self._attempts, ends, self._patience)
        self._far = FarSide(ends.cluster, request.key, self._patience.ask)
        self._across: set[int] = set()
        self._queued = False
        self._looked_at: set[tuple[str, str]] = set()

    def move(self) -> None:
        """See `MoveThread.move`."""
        try:
            self._go_on()
        except VerdictError as verdict:
            self._give_up(str(verdict))
            raise verdict.error from verdict
        except OverdueError as exc:
            # A task that waits for its turn has done no harm, and would lose its place.
            if not self._queued:
                self._give_up(exc.message)
            raise
        except (DataError, ConfigError) as exc:
            self._give_up(exc.message)
            raise
        except LostError:
            if attempt := self._attempts.latest():
                self._attempts.keep(attempt, state="failed")
            raise
        except (FilmloopError, StoppedError):
            raise
        except Exception as exc:
            self._give_up(f"{type(exc).__name__}: {exc}")
            raise
        finally:
            self._patience.close()

    def cancelled(self) -> None:
        """See `MoveThread.cancelled`."""
        self._give_up("cancelled")
        self._patience.close()

    def _request_s(self) -> float:
        """What is left for a request: up to the deadline, or until the tasks of a move that is given up must be cancelled."""
        return self.left_s() if self._cancel_by_s is None else self._cancel_by_s - time.monotonic()

    def _give_up(self, reason: str) -> None:
        now_s = time.monotonic()
        self._cancel_by_s = now_s + max(self.left_s() + self._to_cancel_s, _CANCEL_LEAST_S)
        self._tasks.give_up(reason)

    def tidy(self, *, succeeded: bool) -> None:
        """Remove empty folders on this side; what a failed move has brought is kept for the next attempt."""
        if succeeded and not self._up:
            shutil.rmtree(self._ends.edge_root / self._incoming, ignore_errors=True)

    def _go_on(self) -> None:
        self.keep_on()
        self._ends.leftovers.begin(self.request.key)
        attempt = self._unfinished()
        while True:
            flaw: FilmloopError | None = None
            resumed = attempt is not None
            if attempt is None:
                targets = [self._incoming, *self._targets()]
                self._ends.discards.spare(targets)
                if self._up:
                    self._sweep()
                self._ends.discards.settle(targets, ask=self._patience.ask, pause=self.pause, tell=self._tell)
                send, flaw = self._plan_up() if self._up else self._plan_home()
                attempt = self._tasks.open(send) if send else None
            if attempt is not None:
                attempt = self._finish(attempt)
            if flaw is not None:
                raise flaw
            if not resumed and (attempt is None or attempt.state == "placed"):
                self._count(range(len(self._items)))
                return
            attempt = None

    def _sweep(self) -> None:
        """Give the cluster the space back that others' failed moves take up; this one goes on in any case."""
        try:
            self._ends.sweep(key=self.request.key)
            if self._ends.discards.pending():
                self._ends.discards.send(self._patience.transfer())
        except FilmloopError as exc:
            _log.warning("what failed moves have left is not swept: %s", exc.message)

    def _targets(self) -> list[str]:
        return [item.target_path for item in self._items] if self._up else []

    def _unfinished(self) -> Attempt | None:
        """The attempt that a crash cut off, if it goes on."""
        attempt = self._attempts.latest()
        if attempt is not None and attempt.state == "sent" and attempt.giving_up:
            self._tasks.cancel(attempt)
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

    # What was sent

    def _finish(self, attempt: Attempt) -> Attempt:
        """From wherever the attempt is to all of its files in place; `failed` if it has to be made anew."""
        if attempt.state == "sent":
            attempt = self._tasks.submit(attempt)
            if attempt.state == "failed":
                return attempt
            skipped = [self._watch(task) for task in attempt.tasks]
            attempt = self._audit(attempt, skipped)
        return self._place_up(attempt) if self._up else self._place_home(attempt)

    def _watch(self, task: SentTask) -> TaskView:
        files, size_bytes = self.files_done, self.bytes_done

        def tell(view: TaskView, text: str) -> None:
            self.files_done, self.bytes_done, self.detail = files + view.files, size_bytes + view.bytes, text
            self._queued = view.queued

        watch = Watch(
            task.task_id, size_bytes=sum(self._items[number].size_bytes for number in task.items),
            role=self._role, ask=self._patience.ask, pause=self.pause, poll_s=self._section.poll_s,
            stall_s=self._section.stall_s, look=self._look, tell=tell,
        )  # fmt: skip
        view = watch.until_done()
        self._queued = False
        self._count(task.items)
        return view

    def _look(self, fault: Fault) -> None:
        """Is it the data's fault? Only a source that is gone or has changed is; all else may pass."""
        about = (fault.code, fault.path)
        if fault.code not in ABSENT_CODES | CHECKSUM_CODES or about in self._looked_at:
            return
        self._looked_at.add(about)
        suspects = [item for item in self._items if not fault.path or fault.path.endswith(f"/{item.source_path}")]
        if self._up:
            for item in suspects or self._items:
                check_content(item, below(self._ends.edge_root, item.source_path))
        elif fault.code == EXTERNAL_CHECKSUM:
            # The way was verified before: the file over there is not the one that was hashed.
            raise DataError(
                f"{fault.path or 'A file'} at the cluster is not what its item says. {fault.text}".rstrip(),
                hint="It was changed after training had hashed it; the next cycle trains again.",
            )
        elif fault.code in ABSENT_CODES and suspects:
            cluster, item = self._ends.cluster, suspects[0]
            if self._patience.ask(lambda t: t.stat(cluster.collection, cluster.path(item.source_path))) is None:
                raise DataError(
                    f"{item.source_path} is not at the cluster.", hint="Was its run folder cleaned up? Train again."
                )

    def _audit(self, attempt: Attempt, ended: list[TaskView]) -> Attempt:
        if self._up:
            problems = []
            for task, view in zip(attempt.tasks, ended, strict=True):
                arrivals = self._arrivals(task.task_id)
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

    def _arrivals(self, task_id: str) -> list[Arrival]:
        return self._patience.ask(lambda t: t.arrivals(task_id))

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
            self.detail = f"placing {counted(len(items), 'file')}"
            self._far.take(steps[number], sizes)
            attempt = self._attempts.keep(attempt, steps_done=number + 1)
        self._far = FarSide(self._ends.cluster, self.request.key, self._patience.ask)
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

    def _tell(self, text: str) -> None:
        self.detail = text


def _normal(item: MoveItem) -> MoveItem:
    """The item with its paths in their one form, as the journal of placed files and the collections name them."""
    return replace(item, source_path=relative(item.source_path), target_path=relative(item.target_path))
