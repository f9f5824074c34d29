"""Reads the newest held-out frames and scores bundles on them, in a process of its own: `python -m filmloop.zoo.scoring FOLDER`.

A network that crashes its runtime, or takes for ever, ends that process and not the cycle; and zarr is loaded and frames
are read while the cycle loads its registry client. ONNX Runtime is up in 0.3 s; torch, which takes two, is loaded for a
bundle without an ONNX file only. Until it is told what to score, it scores what is likely to be asked for, on one core.

    standard input        a line end, once the task is there
    FOLDER/task.json      which shards, which frames of them, and which bundles are likely
    FOLDER/seen.json      what they look like
    standard input        bundle folders by version, JSON; its end without any is the end
    FOLDER/scores.json    there once it has been asked; grows by one bundle at a time

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.bundle import ONNX, RESULT, verify_bundle
from filmloop.core import log
from filmloop.core.documents import Document, EvaluationReport, HoldoutPolicy, TrainResult
from filmloop.core.errors import DataError, FilmloopError
from filmloop.core.fsio import disk_errors
from filmloop.core.retry import wait_until
from filmloop.training.holdout import Holdout, RateFunction
from filmloop.zoo.seen import Seen

TASK, SEEN, SCORES, SAID = "task.json", "seen.json", "scores.json", "said.txt"
_BATCH_FRAMES = 256
_LOOK_S = 0.02
_UNASKED_S = 3.0
"""A bundle that nobody has asked for yet may take so long to score once somebody has asked for others."""
_log = logging.getLogger(__name__)


class Task(Document):
    """Which frames: the newest `most` held-out ones of the shards with these manifests, oldest first.

    `likely` are bundles by version that may be asked for, not verified.
    """

    manifests: tuple[str, ...]
    policy: HoldoutPolicy
    most: int
    likely: dict[str, str] = Field(default_factory=dict)


class Scores(Document):
    """Reports by version; or why there is none."""

    reports: dict[str, EvaluationReport] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)

    def with_report(self, version: str, report: EvaluationReport) -> Scores:
        """These and one more."""
        return Scores(reports={**self.reports, version: report}, failed=self.failed)

    def with_failure(self, version: str, why: str) -> Scores:
        """These and one that cannot be scored."""
        return Scores(reports=self.reports, failed={**self.failed, version: why})

    def done(self) -> set[str]:
        """Versions that need no further attempt."""
        return {*self.reports, *self.failed}


class Scorer:
    """The process; what it finds is asked for later. Used as a context, which ends it.

    Args:
        folder: To work in; emptied before and gone afterwards.
        deadline_s: For reading, and for scoring.
        argv: What to run instead of this module, for tests.
    """

    def __init__(self, folder: Path, *, deadline_s: float, argv: tuple[str, ...] = ()) -> None:
        self._folder, self._deadline_s = folder, deadline_s
        self._argv = argv or (sys.executable, "-m", __name__)
        self._task: Task | None = None
        self._child: subprocess.Popen[str] | None = None

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
        """Start the process; it loads what it needs while the caller finds out which shards there are.

        Raises:
            TransientError: the disk refuses.
        """
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
        if self._child is None:
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

    def _tell(self, child: subprocess.Popen[str], asked: str, end_s: float) -> None:
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

    def _start(self) -> subprocess.Popen[str]:
        with disk_errors(self._folder), (self._folder / SAID).open("wb") as said:
            return subprocess.Popen(
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


def main(folder: Path) -> int:
    """Read the frames of the task in `folder`, then score every bundle that standard input names; the exit code."""
    from filmloop.zoo.frames import newest_frames

    with suppress(ImportError):
        import_module("onnxruntime")
    if not os.read(sys.stdin.fileno(), 1):
        return 0  # the caller is gone, or needs nothing
    task = Task.read(folder / TASK)
    try:
        frames = newest_frames([Path(path) for path in task.manifests], task.policy, most=task.most)
    except FilmloopError as exc:
        print(exc.message, file=sys.stderr)
        return exc.exit_code
    if not (folder / SEEN).exists():
        frames.seen.write(folder / SEEN)
    early = _unasked(task.likely, frames.holdout)
    asked, scores = json.loads(sys.stdin.read() or "{}"), Scores()
    scores.write(folder / SCORES)
    for version, bundle in asked.items():
        try:
            nll_N = early.get(TrainResult.read(Path(bundle) / RESULT).bundle_digest())
            if nll_N is None:
                nll_N = frames.holdout.scores(rate_of(Path(bundle)))
        except Exception as exc:  # runtimes raise what they like; the next bundle may be fine
            scores = scores.with_failure(version, f"{type(exc).__name__}: {str(exc).splitlines()[0]}")
        else:
            if all(map(math.isfinite, nll_N)):
                scores = scores.with_report(version, frames.holdout.report(version, nll_N, version))
            else:
                scores = scores.with_failure(version, "its rates are not finite")
        scores.write(folder / SCORES)
    return 0


def _unasked(likely: Mapping[str, str], holdout: Holdout) -> dict[str, npt.NDArray[np.float64]]:
    """NLL of each frame, by digest of the bundle, of those that are whole; until somebody asks.

    A bundle is known by its digest here: what lies in its folder when it is asked for may be another one.
    """
    found = {}
    for bundle in map(Path, likely.values()):
        if select.select([sys.stdin], [], [], 0)[0]:
            break
        with suppress(Exception):  # if it is asked for, what is wrong with it is told then
            found[verify_bundle(bundle).bundle_digest()] = holdout.scores(rate_of(bundle, threads=1))
    return found


def rate_of(bundle: Path, *, threads: int | None = None) -> RateFunction:
    """The network of a bundle as a function of counts, on all cores by default."""
    if (bundle / ONNX).is_file():
        from filmloop.edge.runtimes.onnx import OnnxRuntime

        shape = TrainResult.read(bundle / RESULT).model.frame_shape
        threads = threads or len(os.sched_getaffinity(0))
        return OnnxRuntime(
            bundle / ONNX, version="", frame_shape=shape, batch_frames=_BATCH_FRAMES, threads=threads
        ).infer
    from filmloop.training.evaluate import rate_function
    from filmloop.training.load import load_module

    return rate_function(load_module(bundle))


if __name__ == "__main__":
    log.configure()
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # the caller waits for the end: runtimes and zarr take a tenth of a second to take themselves down
