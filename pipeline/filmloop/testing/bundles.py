"""Small result bundles that pass `verify_bundle`, made without torch: for tests of whatever carries bundles around."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from filmloop import bundle as names
from filmloop.core.documents import EvaluationReport, ModelChoice, ShardRef, TrainJob, TrainResult
from filmloop.core.fsio import atomic_write_bytes, sha256_bytes

FRAMES_DIGEST = sha256_bytes(b"the same held-out frames")


def small_report(name: str, nll_frames: tuple[float, ...], *, frames_digest: str = FRAMES_DIGEST) -> EvaluationReport:
    """A report with these scores; its interval is the range of two standard errors."""
    scores = np.asarray(nll_frames)
    mean, error = float(scores.mean()), float(scores.std() / np.sqrt(len(scores)))
    return EvaluationReport(
        name=name,
        frames=len(nll_frames),
        frames_digest=frames_digest,
        nll=mean,
        nll_low=mean - 2 * error,
        nll_high=mean + 2 * error,
        nll_frames=nll_frames,
    )


def make_bundle(
    folder: Path,
    *,
    seed: int = 0,
    job_id: str = "job-1",
    base_version: str = "",
    reports: Mapping[str, EvaluationReport] | None = None,
) -> TrainResult:
    """Write a valid bundle of 4 × 8 frames into `folder`; bundles of different seeds differ in every digest.

    `reports` replaces its evaluation, in which the challenger is 1 nat a frame better than the Gaussian.
    """
    rng = np.random.default_rng(seed)
    (folder / "plots").mkdir(parents=True)
    model = ModelChoice(name="mixer", frame_shape=(4, 8))
    counts_NCE = rng.poisson(2.0, (3, 4, 8)).astype(np.uint8)
    save_file({"head.weight": rng.normal(size=(8, 8)).astype(np.float32)}, folder / names.WEIGHTS)
    save_file({"counts_NCE": counts_NCE, "rate_NCE": np.full((3, 4, 8), 2.0, np.float32)}, folder / names.GOLDEN)
    scores = tuple(float(value) for value in rng.normal(60.0, 5.0, 300))
    if reports is None:
        reports = {
            "challenger": small_report("challenger", scores),
            "gaussian": small_report("gaussian", tuple(value + 1.0 for value in scores)),
        }
    names.Evaluation(reports=dict(reports)).write(folder / names.EVALUATION)
    curve = "".join(f'{{"step": {step}, "loss": {2.0 / (step + 1)}}}\n' for step in range(0, 200, 10))
    atomic_write_bytes(folder / names.METRICS, curve.encode())
    atomic_write_bytes(folder / "plots" / "loss.png", b"\x89PNG\r\n\x1a\n" + bytes(rng.integers(0, 255, 64).tolist()))
    shard = ShardRef(shard_id="s-1", manifest_path="s-1.json", manifest_digest=sha256_bytes(b"s-1"), frames=6000)
    TrainJob(job_id=job_id, model=model, fresh=(shard,), output_dir=str(folder.parent), seed=seed).write(
        folder / names.JOB
    )
    return seal_bundle(
        folder,
        model,
        job_id=job_id,
        seed=seed,
        base_version=base_version,
        steps=200,
        epochs=8.5,
        frames_trained=5400,
        frames_held_out=600,
        train_s=12.5,
        wall_s=20.0,
        loss_first=2.0,
        loss_last=0.01,
        world_size=2,
        metrics={"nll": reports["challenger"].nll},
        lineage={shard.shard_id: shard.manifest_digest},
        config_digest=sha256_bytes(b"config"),
        code_commit="0" * 40,
    )


def seal_bundle(folder: Path, model: ModelChoice, *, job_id: str = "job", seed: int = 0, **told: Any) -> TrainResult:
    """Write `result.json` over the files as they lie in `folder`, also over those that a test has spoiled.

    `told` is what the result says beside what the files say, over the values of a run of one step.
    """
    files = names.file_digests(folder)
    one_step: dict[str, Any] = {
        "status": "completed",
        "steps": 1,
        "epochs": 0.0,
        "frames_trained": 1,
        "frames_held_out": 1,
        "train_s": 0.0,
        "wall_s": 0.0,
        "loss_first": 1.0,
        "loss_last": 1.0,
        "world_size": 1,
        "device": "cpu",
        "lineage": {},
        "versions": {"python": "3.11", "torch": "2.9"},
    }
    weights_sha256 = next(file.sha256 for file in files if file.path == names.WEIGHTS)
    result = TrainResult(
        job_id=job_id, model=model, seed=seed, weights_sha256=weights_sha256, files=files, **{**one_step, **told}
    )
    result.write(folder / names.RESULT)
    return result
