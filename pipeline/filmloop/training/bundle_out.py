"""Makes the result bundle: evaluation, weights, golden pair, ONNX file, plots, and last of all the result document.

With two ranks or more the last one scores the champion while the first one scores the challenger, and plots scores and
training while that one exports it and plots a frame; the first one publishes the folder. The baselines were scored during training.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

import filmloop
from filmloop.bundle import (
    EVALUATION,
    GOLDEN,
    JOB,
    METRICS,
    ONNX,
    RESULT,
    WEIGHTS,
    Evaluation,
    file_digests,
    load_evaluation,
    load_golden,
)
from filmloop.core.documents import EvaluationReport, TrainJob, TrainResult
from filmloop.core.fsio import PART_SUFFIX, disk_errors, publish_dir, sha256_file
from filmloop.training.data import TrainingData
from filmloop.training.evaluate import evaluate_challenger, evaluate_champion, rate_function
from filmloop.training.export import export_onnx, packed_weights
from filmloop.training.holdout import Holdout
from filmloop.training.progress import Progress
from filmloop.training.ranks import Ranks

PLOTS = "plots"
GOLDEN_FRAMES = 16


def make_bundle(
    job: TrainJob,
    module: nn.Module,
    data: TrainingData,
    progress: Progress,
    ranks: Ranks,
    *,
    baselines: Future[dict[str, EvaluationReport]] | None,
    metrics: Path,
    target: Path,
    started_s: float,
) -> None:
    """Publish the folder `target`, whole or not at all.

    Args:
        job: What was asked for.
        module: The network with the weights to ship.
        data: What it was trained on, and the frames to score it on.
        progress: How training went.
        ranks: Who helps.
        baselines: What `evaluate_baselines` makes of the data, on the last rank.
        metrics: The lines that training wrote.
        target: The bundle's folder; one that is there is replaced.
        started_s: Monotonic time at which this process began.

    Raises:
        TransientError: the disk refuses.
        TrainingError: a score is not finite.
        VerificationError: the champion's bundle is damaged.
    """
    part = target.with_name(target.name + PART_SUFFIX)
    device = next(module.parameters()).device
    # With labels the loop's scores are squared errors: the reports are of likelihoods.
    known = job.hyper.mode == "thinning"
    best_N, start_N = (progress.best_scores_N, progress.start_scores_N) if known else (None, None)
    if ranks.is_first:
        with disk_errors(part):
            shutil.rmtree(part, ignore_errors=True)
            (part / PLOTS).mkdir(parents=True)
            shutil.copyfile(metrics, part / METRICS)
    ranks.sum(0.0)  # the folder is there
    others: dict[str, EvaluationReport] = {}
    if ranks.is_last:
        assert baselines is not None
        others = {**evaluate_champion(job, data, device, start_N), **baselines.result()}
    if ranks.is_first:
        challenger = evaluate_challenger(module, data.holdout, best_N)
        Evaluation(reports=challenger).write(part / EVALUATION)
        job.write(part / JOB)
    ranks.sum(0.0)  # the challenger's report is there
    if ranks.is_last:
        reports = {**load_evaluation(part).reports, **others}
        Evaluation(reports=reports).write(part / EVALUATION)
        with disk_errors(part):
            _plot_scores_and_training(part, reports)
    if ranks.is_first:
        with disk_errors(part):
            _export(module.cpu().eval(), job, data.holdout, part)
            _plot_frame(part)
    ranks.sum(0.0)  # the folder is whole but for the result
    if ranks.is_first:
        reports = load_evaluation(part).reports
        _result(job, data, progress, reports, part, ranks.world, device, started_s).write(part / RESULT)
        publish_dir(part, target)


def _export(module: nn.Module, job: TrainJob, holdout: Holdout, part: Path) -> None:
    (part / WEIGHTS).write_bytes(packed_weights(module))
    golden = holdout[-GOLDEN_FRAMES:]
    rate_NCE = rate_function(module)(golden.counts_NCE.astype(np.float32))
    pair = {"counts_NCE": torch.from_numpy(golden.counts_NCE), "rate_NCE": torch.from_numpy(rate_NCE)}
    (part / GOLDEN).write_bytes(save(pair))
    export_onnx(module, job.model.frame_shape, part / ONNX)


def _plot_scores_and_training(part: Path, reports: Mapping[str, EvaluationReport]) -> None:
    from filmloop.training import plots  # matplotlib takes 0.4 s to import, and only here is something plotted

    plots.plot_scores(part / PLOTS / "scores.png", reports)
    plots.plot_training(part / PLOTS / "training.png", part / METRICS)


def _plot_frame(part: Path) -> None:
    from filmloop.training import plots

    counts_NCE, rate_NCE = load_golden(part)
    fullest = int(counts_NCE.sum(axis=(1, 2)).argmax())
    plots.plot_frame(part / PLOTS / "frame.png", counts_NCE[fullest], rate_NCE[fullest])


def _result(
    job: TrainJob,
    data: TrainingData,
    progress: Progress,
    reports: Mapping[str, EvaluationReport],
    part: Path,
    world: int,
    device: torch.device,
    started_s: float,
) -> TrainResult:
    assert progress.status != "running"
    challenger = reports["challenger"]
    metrics = {f"nll_{name}": report.nll for name, report in reports.items() if name != "challenger"}
    metrics |= {"nll": challenger.nll, "nll_low": challenger.nll_low, "nll_high": challenger.nll_high}
    metrics |= {
        "best_step": float(progress.best_step),
        "hits_per_frame": sum(data.channel_hits),
        "loader_idle_share": progress.loader_idle_share,
    }
    metrics["frames_per_s"] = progress.step * job.hyper.batch_frames / max(progress.elapsed_s, 1e-9)
    if job.hyper.mode == "labelled":
        metrics |= {"mse_holdout": progress.best_score, "label_gain": data.label_gain}
    return TrainResult(
        job_id=job.job_id,
        status=progress.status,
        model=job.model,
        base_version=job.base.version if job.base is not None else "",
        steps=progress.step,
        epochs=progress.epochs,
        frames_trained=data.frames,
        frames_held_out=len(data.holdout),
        steps_skipped=progress.skipped,
        resumed_from_step=progress.resumed_from_step,
        train_s=progress.elapsed_s,
        wall_s=time.monotonic() - started_s,
        loss_first=progress.loss_first,
        loss_last=progress.loss_last,
        world_size=world,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seed=job.seed,
        metrics=metrics,
        channel_hits=data.channel_hits,
        lineage=data.lineage,
        versions=_versions(),
        config_digest=job.config_digest,
        code_commit=job.code_commit,
        weights_sha256=sha256_file(part / WEIGHTS),
        files=file_digests(part),
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "zarr", "safetensors")
    ours = {"python": platform.python_version(), "filmloop": filmloop.__version__}
    return ours | {name: metadata.version(name) for name in packages}
