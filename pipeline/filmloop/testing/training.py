"""Small shards and jobs, so that a test of training says only what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import HoldoutPolicy, ModelChoice, ShardRef, TrainHyper, TrainJob
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard
from filmloop.testing.shards import write_shard
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator


def staged_frames(
    stage: Path,
    counts_NCE: npt.NDArray[np.uint8],
    *,
    label_NCE: npt.NDArray[np.float32] | None = None,
    first_pulse_id: int = 0,
    run_number: int = 1,
    seq: int = 0,
) -> ShardRef:
    """Seal these frames as one shard and name it as a job does; pulse ids count up from `first_pulse_id`."""
    frames = len(counts_NCE)
    block = FrameBlock(
        run_number=run_number,
        pulse_id_N=np.arange(first_pulse_id, first_pulse_id + frames, dtype=np.uint64),
        counts_NCE=counts_NCE,
        flags_N=np.zeros(frames, np.uint8),
        label_NCE=label_NCE,
    )
    return shard_ref(write_shard(stage, block, seq=seq, frames_per_chunk=1024))


def shard_ref(sealed: SealedShard) -> ShardRef:
    """The shard as a job names it."""
    return ShardRef(
        shard_id=sealed.manifest.shard_id,
        manifest_path=str(sealed.manifest_path),
        manifest_digest=sealed.manifest.digest(),
        frames=sealed.manifest.frames,
    )


def simulated_counts(frames: int, *, seed: int = 3, **conditions: Any) -> npt.NDArray[np.uint8]:
    """Counts (N, 16, 128) of the CookieBox simulator."""
    return CookieBoxSimulator(Conditions(**conditions), seed=seed).frames(0, frames).counts_NCE


def small_job(output_dir: Path, *fresh: ShardRef, **changes: Any) -> TrainJob:
    """A job over `fresh` that trains a mixer of 9,000 parameters for 40 steps.

    Args:
        output_dir: Its run folder.
        fresh: Its fresh shards.
        changes: Fields to replace; `hyper` and `holdout` take dicts that are merged over the small defaults.
    """
    small = {"max_steps": 40, "batch_frames": 64, "evaluate_every_steps": 20, "train_s": 3600.0}
    model = ModelChoice(
        name="mixer",
        frame_shape=changes.pop("frame_shape", (16, 128)),
        hyper={"features": 24, "angle_features": 16, "depth": 1},
    )
    given = {
        "job_id": "job-1",
        "model": model,
        "fresh": fresh,
        "output_dir": str(output_dir),
        **changes,
        "hyper": TrainHyper.model_validate(small | changes.get("hyper", {})),
        "holdout": HoldoutPolicy.model_validate({"permille": 200} | changes.get("holdout", {})),
    }
    return TrainJob.model_validate(given)
