"""The caller's side of the zoo's scoring (`filmloop.zoo.scoring`): starts the process, tells it what to do, outlives what it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from filmloop.core.documents import HoldoutPolicy
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.zoo import scoring
from filmloop.zoo.scoring import SCORES, SEEN, TASK, Scores, Task
from filmloop.zoo.seen import Seen

SAID = "said.txt"
_LOOK_S = 0.02
_UNASKED_S = 3.0
"""A bundle that nobody has asked for yet may take so long to score once somebody has asked for others."""


class Child(Protocol):
    """A process under way: `subprocess.Popen`, or one with its methods."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None as long as nobody has asked since it ended."""

    @property
    def stdin(self) -> IO[str] | None:
        """Its standard input."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def kill(self) -> None:
        """SIGKILL."""

    def communicate(self, input: str | None = None, timeout: float | None = None) -> object:
        """Give it the rest of its input, and wait for its end. Raises subprocess.TimeoutExpired."""


WarmStart = Callable[[str, Sequence[str], int], Child | None]
"""Starts a module with these arguments, its output to that descriptor."""


class Scorer:
    """The process; what it finds is asked for later. Used as a context, which ends it.

    Args:
        folder: To work in; emptied before and gone afterwards.
        deadline_s: For reading, and for scoring.
        warm: Starts a module in a process that has loaded what it needs; None if that cannot be had now.
        argv: What to run instead of this module, for tests.
    """

    def __init__(
        self, folder: Path, *, deadline_s: float, warm: WarmStart | None = None, argv: tuple[str, ...] = ()
    ) -> None:
        self._folder, self._deadline_s, self._warm = folder, deadline_s, warm
        self._argv = argv or (sys.executable, "-m", scoring.__name__)
        self._task: Task | None = None
        self._child: Child | None = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and remove the folder."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def load(self) -> None:
        """Start the process unless it is there; it loads what it needs while the caller finds out which shards there are.

        Raises:
            TransientError: the disk refuses.
        """
        if self._child is not None:
            return
        with disk_errors(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        self._child = self._start()

    def begin(
        self,
        manifests: Sequence[Path],
        policy: HoldoutPolicy,
        *,
        most: int,
        likely: Mapping[str, Path] | None = None,
    ) -> None:
        """Have the frames read.

        Args:
            manifests: Of the shards with the newest frames, oldest first.
            policy: Which frames are held out, and how they are split.
            most: Held-out frames to score on, the newest.
            likely: Bundle folders by version that lie here and may be asked for, the likeliest first.

        Raises:
            TransientError: the disk refuses.
        """
        self.load()
        early = {version: str(folder) for version, folder in (likely or {}).items()}
        self._task = Task(manifests=tuple(map(str, manifests)), policy=policy, most=most, likely=early)
        self._give_task()

    def seen(self) -> Seen:
        """What the frames look like; waits until they are read.

        Raises:
            DataError: a shard is damaged, or not one frame is held out.
            TransientError: it takes longer than the deadline.
        """

        def read() -> Seen | None:
            ended = self._child is None or self._child.poll() is not None
            if (self._folder / SEEN).exists():
                return Seen.read(self._folder / SEEN)
            if ended:
                raise DataError(f"The newest frames cannot be read: {self._said()}")
            return None

        return wait_until(
            read, deadline_s=self._deadline_s, what="Reading the newest frames", first_s=_LOOK_S, cap_s=_LOOK_S
        )

    def score(self, bundles: Mapping[str, Path]) -> Scores:
        """Score verified bundles, the first come first.

        A bundle whose scoring ended the process is left out and the rest is tried again, in another one; what is not
        scored by the deadline is left out too.

        Args:
            bundles: Folders by version.
        """
        end_s = time.monotonic() + self._deadline_s
        scores = Scores()
        while left := {version: str(path) for version, path in bundles.items() if version not in scores.done()}:
            if self._child is None:
                self._child = self._start()
                self._give_task()
            child, late = self._child, False
            self._child = None
            try:
                self._tell(child, json.dumps(left), end_s)
                why = f"its scoring ended with {child.returncode}: {self._said()}"
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                why, late = f"not scored within {self._deadline_s:g} s", time.monotonic() >= end_s
            if self._likely() and not late and not (self._folder / SCORES).exists():
                assert self._task is not None
                self._task = self._task.model_copy(update={"likely": {}})
                continue  # it fell over a bundle that nobody had asked for; the next one scores those alone that are
            scores = self._merged(scores)
            waiting = [version for version in left if version not in scores.done()]
            for version in waiting if late else waiting[:1]:
                scores = scores.with_failure(version, why)
            (self._folder / SCORES).unlink(missing_ok=True)
        return scores

    def _tell(self, child: Child, asked: str, end_s: float) -> None:
        """Wait for its end; one that is still busy with what nobody asked for gets a short time to hear.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        hears_late = self._likely() and (self._folder / SEEN).exists()
        left_s = max(0.1, end_s - time.monotonic())
        try:
            child.communicate(asked, timeout=min(_UNASKED_S, left_s) if hears_late else left_s)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end_s or not (self._folder / SCORES).exists():
                raise
            child.communicate(timeout=max(0.1, end_s - time.monotonic()))

    def _likely(self) -> bool:
        return self._task is not None and bool(self._task.likely)

    def _give_task(self) -> None:
        assert self._task is not None, "begin comes first"
        assert self._child is not None
        assert self._child.stdin is not None
        self._task.write(self._folder / TASK)
        with suppress(BrokenPipeError):  # it has ended, as whoever asks it finds out
            self._child.stdin.write("\n")
            self._child.stdin.flush()

    def _start(self) -> Child:
        with disk_errors(self._folder), (self._folder / SAID).open("wb") as said:
            warm = self._warm and self._warm(scoring.__name__, [str(self._folder)], said.fileno())
            return warm or subprocess.Popen(
                [*self._argv, str(self._folder)], stdin=subprocess.PIPE, stdout=said, stderr=said, text=True
            )

    def _end(self) -> None:
        if self._child is None:
            return
        with suppress(OSError):
            self._child.kill()
        self._child.communicate()
        self._child = None

    def _said(self) -> str:
        try:
            return (self._folder / SAID).read_text(encoding="utf-8", errors="replace").strip()[-200:] or "nothing said"
        except OSError:
            return "nothing said"

    def _merged(self, scores: Scores) -> Scores:
        try:
            new = Scores.read(self._folder / SCORES)
        except DataError:  # it ended before the first
            return scores
        return Scores(reports={**scores.reports, **new.reports}, failed={**scores.failed, **new.failed})
