"""Scores bundles on held-out frames, in a process of its own: `python -m filmloop.zoo.scoring FOLDER`.

A network that crashes its runtime, or takes for ever, ends that process and not the cycle. ONNX Runtime is up in 0.3 s;
torch, which takes two, is loaded for a bundle without an ONNX file only. `FOLDER` holds `frames.npz` and
`request.json`; `scores.json` in it grows by one bundle at a time.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.bundle import ONNX, RESULT
from filmloop.core import log
from filmloop.core.documents import Document, HoldoutPolicy, TrainResult
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors
from filmloop.training.holdout import Holdout, RateFunction

FRAMES = "frames.npz"
_ARRAYS = ("run_N", "pulse_id_N", "counts_NCE", "kept_NCE", "weight_N", "alive_NC", "gain_NC")
_BATCH_FRAMES = 256
_log = logging.getLogger(__name__)


class Request(Document):
    """What to score: bundle folders by version, in this order."""

    policy: HoldoutPolicy
    bundles: dict[str, str]


class Scores(Document):
    """`Holdout.scores` by version; or why there is none."""

    nll_frames: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)

    def with_score(self, version: str, nll_N: npt.NDArray[np.float64]) -> Scores:
        """These and one more."""
        return Scores(nll_frames={**self.nll_frames, version: tuple(nll_N.tolist())}, failed=self.failed)

    def with_failure(self, version: str, why: str) -> Scores:
        """These and one that cannot be scored."""
        return Scores(nll_frames=self.nll_frames, failed={**self.failed, version: why})

    def done(self) -> set[str]:
        """Versions that need no further attempt."""
        return {*self.nll_frames, *self.failed}


def score_bundles(
    bundles: Mapping[str, Path], holdout: Holdout, folder: Path, *, deadline_s: float, argv: tuple[str, ...] = ()
) -> Scores:
    """Score verified bundles in a child process that works in `folder`, which is emptied before and gone afterwards.

    A bundle whose scoring ended the child is left out and the rest is tried again; what is not scored within
    `deadline_s` is left out too.

    Args:
        bundles: Folders by version; the first come first.
        holdout: What to score on.
        folder: Below the cycle's own.
        deadline_s: For all of it.
        argv: What to run instead of this module, for tests.

    Raises:
        TransientError: the disk refuses.
    """
    end_s = time.monotonic() + deadline_s
    scores = Scores()
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _put(holdout, folder / FRAMES)
    while left := {version: str(path) for version, path in bundles.items() if version not in scores.done()}:
        Request(policy=holdout.policy, bundles=left).write(folder / "request.json")
        try:
            ended = subprocess.run(
                [*(argv or (sys.executable, "-m", __name__)), str(folder)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(0.1, end_s - time.monotonic()),
            )  # fmt: skip
            why = f"its scoring ended with {ended.returncode}: {ended.stderr.strip()[-200:] or 'nothing said'}"
            late = False
        except subprocess.TimeoutExpired:
            why, late = f"not scored within {deadline_s:g} s", True
        scores = _merged(scores, folder)
        waiting = [version for version in left if version not in scores.done()]
        for version in waiting if late else waiting[:1]:
            scores = scores.with_failure(version, why)
        (folder / "scores.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return scores


def _merged(scores: Scores, folder: Path) -> Scores:
    try:
        new = Scores.read(folder / "scores.json")
    except DataError:  # it ended before the first
        return scores
    return Scores(nll_frames={**scores.nll_frames, **new.nll_frames}, failed={**scores.failed, **new.failed})


def main(folder: Path) -> None:
    """Score every bundle of the request in `folder`."""
    request, scores = Request.read(folder / "request.json"), Scores()
    holdout = _taken(folder / FRAMES, request.policy)
    for version, bundle in request.bundles.items():
        try:
            nll_N = holdout.scores(rate_of(Path(bundle)))
        except Exception as exc:  # runtimes raise what they like; the next bundle may be fine
            scores = scores.with_failure(version, f"{type(exc).__name__}: {str(exc).splitlines()[0]}")
        else:
            if all(map(math.isfinite, nll_N)):
                scores = scores.with_score(version, nll_N)
            else:
                scores = scores.with_failure(version, "its rates are not finite")
        scores.write(folder / "scores.json")


def rate_of(bundle: Path) -> RateFunction:
    """The network of a bundle as a function of counts."""
    if (bundle / ONNX).is_file():
        from filmloop.edge.runtimes.onnx import OnnxRuntime

        shape = TrainResult.read(bundle / RESULT).model.frame_shape
        threads = len(os.sched_getaffinity(0))
        return OnnxRuntime(
            bundle / ONNX, version="", frame_shape=shape, batch_frames=_BATCH_FRAMES, threads=threads
        ).infer
    from filmloop.training.evaluate import rate_function
    from filmloop.training.load import load_module

    return rate_function(load_module(bundle))


def _put(holdout: Holdout, path: Path) -> None:
    arrays = {name: getattr(holdout, name) for name in _ARRAYS}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def _taken(path: Path, policy: HoldoutPolicy) -> Holdout:
    with np.load(path) as arrays:
        return Holdout(label_NCE=None, policy=policy, **{name: arrays[name] for name in arrays.files})


if __name__ == "__main__":
    log.configure()
    main(Path(sys.argv[1]))
