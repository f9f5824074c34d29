"""Reads the newest held-out frames and scores bundles on them, in a process of its own: `python -m filmloop.zoo.scoring FOLDER`.

A network that crashes its runtime, or takes for ever, ends that process and not the cycle; and zarr is loaded and frames
are read while the cycle loads its registry client. ONNX Runtime is up in 0.3 s; torch, which takes two, is loaded for a
bundle without an ONNX file only. Until it is told what to score, it scores what is likely to be asked for.

    standard input        a line end, once the task is there
    FOLDER/task.json      which shards, which frames of them, and which bundles are likely
    FOLDER/seen.json      what they look like
    standard input        bundle folders by version, JSON; its end without any is the end
    FOLDER/scores.json    there once it has been asked; grows by one bundle at a time

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.bundle import ONNX, RESULT, verify_bundle
from filmloop.core import log
from filmloop.core.documents import Document, EvaluationReport, HoldoutPolicy, TrainResult
from filmloop.core.errors import FilmloopError
from filmloop.training.holdout import Holdout, RateFunction

TASK, SEEN, SCORES = "task.json", "seen.json", "scores.json"
_BATCH_FRAMES = 256


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


def main(folder: Path) -> int:
    """Read the frames of the task in `folder`, then score every bundle that standard input names; the exit code."""
    from filmloop.zoo.frames import newest_frames

    threading.Thread(target=_load_runtime, daemon=True).start()  # while it waits, or reads
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


def _load_runtime() -> None:
    with suppress(ImportError):
        import_module("onnxruntime")


def _unasked(likely: Mapping[str, str], holdout: Holdout) -> dict[str, npt.NDArray[np.float64]]:
    """NLL of each frame, by digest of the bundle, of those that are whole; until somebody asks.

    A bundle is known by its digest here: what lies in its folder when it is asked for may be another one.
    """
    found: dict[str, npt.NDArray[np.float64]] = {}

    def score(bundle: str) -> None:
        if select.select([sys.stdin], [], [], 0)[0]:
            return
        with suppress(Exception):  # if it is asked for, what is wrong with it is told then
            found[verify_bundle(Path(bundle)).bundle_digest()] = holdout.scores(rate_of(Path(bundle), threads=1))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(score, likely.values()))
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
