"""Small shards and jobs, so that a test of training says only what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, HoldoutPolicy, ModelChoice, ShardRef, TrainHyper, TrainJob
from filmloop.core.types import FrameBlock
from filmloop.staging.writer import ShardWriter
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator


def write_shard(
    stage: Path,
    counts_NCE: npt.NDArray[np.uint8],
    *,
    label_NCE: npt.NDArray[np.float32] | None = None,
    first_pulse_id: int = 0,
    run_number: int = 1,
    seq: int = 0,
) -> ShardRef:
    """Seal the frames as one shard of stream `test`; pulse ids count up from `first_pulse_id`."""
    frames = len(counts_NCE)
    writer = ShardWriter(
        stage,
        site="test",
        stream="test",
        run_number=run_number,
        seq=seq,
        frame_shape=(counts_NCE.shape[1], counts_NCE.shape[2]),
        labelled=label_NCE is not None,
        section=StagingSection(frames_per_shard=frames),
    )
    block = FrameBlock(
        run_number=run_number,
        pulse_id_N=np.arange(first_pulse_id, first_pulse_id + frames, dtype=np.uint64),
        counts_NCE=counts_NCE,
        flags_N=np.zeros(frames, np.uint8),
        label_NCE=label_NCE,
    )
    writer.append(block, version_N=np.zeros(frames, np.uint32), phase_N=np.full(frames, np.nan, np.float32))
    sealed = writer.seal(accounting=Accounting())
    return ShardRef(
        shard_id=sealed.manifest.shard_id,
        manifest_path=str(sealed.manifest_path),
        manifest_digest=sealed.manifest.digest(),
        frames=frames,
    )


def simulated_counts(frames: int, *, seed: int = 3, **conditions: Any) -> npt.NDArray[np.uint8]:
    """Counts (N, 16, 128) of the CookieBox simulator."""
    simulator = CookieBoxSimulator(Conditions(**conditions), seed=seed)
    return simulator.frames(0, frames).counts_NCE


def small_job(output_dir: Path, *fresh: ShardRef, **changes: Any) -> TrainJob:
    """A job over `fresh` that trains a mixer of 15,000 parameters for 40 steps; `changes` replace fields.

    `hyper` and `holdout` take dicts, merged over the small defaults.
    """
    shape = changes.pop("frame_shape", (16, 128))
    hyper = {"max_steps": 40, "batch_frames": 64, "evaluate_every_steps": 20, "train_s": 300.0} | changes.pop("hyper", {})
    holdout = {"permille": 200} | changes.pop("holdout", {})
    return TrainJob(
        job_id=changes.pop("job_id", "job-1"),
        model=ModelChoice(
            name="mixer", frame_shape=shape, hyper={"features": 24, "angle_features": 16, "depth": 1}
        ),
        fresh=fresh,
        output_dir=str(output_dir),
        hyper=TrainHyper(**hyper),
        holdout=HoldoutPolicy(**holdout),
        **changes,
    )
