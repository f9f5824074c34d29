"""The process that torchrun starts, once per rank: `python -m filmloop.training.entry job.json`.

Exit codes: 0 the bundle is in `output_dir/bundle` (also if it was there before); 75 (`TerminatedError`) ended by SIGTERM,
checkpoint written, start it again; else the exit code of the error. Whatever it was lies in `output_dir/error.json`
(`training.failure`): torchrun exits with 1 for every failed rank, so whoever started torchrun reads that file.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filmloop.bundle import METRICS, RESULT, verify_bundle
from filmloop.core import log
from filmloop.core.documents import TrainJob
from filmloop.core.errors import FilmloopError, TransientError
from filmloop.core.fsio import disk_errors, try_lock
from filmloop.training.failure import explained, forget_earlier_error, leave_error

BUNDLE = "bundle"
LOCK = ".lock"
USAGE_EXIT = 2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_log = logging.getLogger("filmloop.training.entry")  # __name__ is __main__ under torchrun


class StopFlag:
    """Set by SIGTERM, which may come twice: from torchrun and from the batch system."""

    def __init__(self) -> None:
        self._is_set = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def __call__(self) -> bool:
        """Whether SIGTERM has come."""
        return self._is_set

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_set = True


def main(argv: list[str]) -> int:
    """Train the job in the file `argv[0]`; returns the exit code."""
    started_s = time.monotonic()
    told_to_stop = StopFlag()
    _die_with_torchrun()
    log.configure()
    if len(argv) != 1:
        _log.error("usage: python -m filmloop.training.entry job.json")
        return USAGE_EXIT
    try:
        job = TrainJob.read(Path(argv[0]))
    except FilmloopError as exc:
        _log.error("%s %s", exc.message, exc.hint)
        return exc.exit_code
    folder = Path(job.output_dir)
    with log.log_context(job_id=job.job_id):
        try:
            return _run(job, folder, told_to_stop, started_s)
        except FilmloopError as exc:
            return _fail(folder, exc)
        except Exception as exc:
            traceback.print_exc()
            return _fail(folder, explained(exc))


def _run(job: TrainJob, folder: Path, told_to_stop: StopFlag, started_s: float) -> int:
    if _is_finished(job, folder):
        return 0
    if int(os.environ.get("RANK", 0)) != 0:
        return _train(job, folder, told_to_stop, started_s)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with try_lock(folder / LOCK) as is_free:
        if not is_free:
            # Not ours to write error.json: the job is running well.
            _log.error("another process trains in %s", folder)
            return TransientError.exit_code
        forget_earlier_error(folder)
        return _train(job, folder, told_to_stop, started_s)


def _train(job: TrainJob, folder: Path, told_to_stop: StopFlag, started_s: float) -> int:
    # Imported here: a second start of a finished job then costs 0.3 s instead of 2.
    import torch

    from filmloop.training.bundle_out import make_bundle
    from filmloop.training.data import load_data
    from filmloop.training.evaluate import evaluate_baselines
    from filmloop.training.load import build_module, put_weights, verified_base
    from filmloop.training.ranks import joined_ranks
    from filmloop.training.trainer import train
    from filmloop.training.trial import try_network

    with joined_ranks() as ranks, ThreadPoolExecutor(1, "baselines") as beside:
        if not ranks.is_first:
            log.configure(level=logging.WARNING)
        torch.manual_seed(job.seed)
        module = build_module(job.model)
        try_network(module, job.model)
        if job.base is not None:
            put_weights(module, verified_base(job.base, job.model))
        data = load_data(job, ranks.device)
        _log.info("%d frames to train on, %d held out", data.frames, len(data.holdout))
        # A second of one core, within the minute that the network trains.
        baselines = beside.submit(evaluate_baselines, data) if ranks.is_last else None
        progress = train(job, module, data, ranks, folder=folder, told_to_stop=told_to_stop, started_s=started_s)
        _log.info("%s after %d steps, %.1f s", progress.status, progress.step, progress.elapsed_s)
        make_bundle(
            job,
            module,
            data,
            progress,
            ranks,
            baselines=baselines,
            metrics=folder / METRICS,
            target=folder / BUNDLE,
            started_s=started_s,
        )
        _log.info("bundle published, %.1f s in all", time.monotonic() - started_s)
    return 0


def _is_finished(job: TrainJob, folder: Path) -> bool:
    """Whether the whole, undamaged bundle of this very job is there already."""
    if not (folder / BUNDLE / RESULT).is_file():
        return False
    try:
        return verify_bundle(folder / BUNDLE).job_id == job.job_id
    except FilmloopError as exc:
        _log.warning("the bundle in %s is made again: %s", folder, exc.message)
        return False


def _fail(folder: Path, error: FilmloopError) -> int:
    """Leave the error where the launcher finds it."""
    _log.error("%s %s", error.message, error.hint)
    with suppress(FilmloopError):
        leave_error(folder, error)
    return error.exit_code


def _die_with_torchrun() -> None:
    """Have the kernel kill this rank when torchrun dies: a second start must never meet the ranks of the first."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave(exit_code: int) -> NoReturn:
    """End a rank without Python's own farewell.

    torch keeps the ranks' group, and its threads, when DDP has had it. One that lets go of its last message while the
    interpreter ends aborts the process: a finished job would be taken for a lost one.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
