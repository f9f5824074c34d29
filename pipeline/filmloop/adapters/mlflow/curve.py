"""What of a bundle becomes curves and parameters of its MLflow run."""

from __future__ import annotations

import json
import math
from pathlib import Path

from filmloop.bundle import JOB, METRICS
from filmloop.core.documents import TrainJob, TrainResult
from filmloop.core.fsio import disk_errors

_POINTS = 500
"""Points a curve keeps: more than a screen shows, and 5 curves cost three requests."""


def curve_metrics(bundle: Path) -> list[tuple[str, float, int]]:
    """(name, value, step) of the training curve in `metrics.jsonl`, thinned evenly to at most about 500 steps.

    A line that is not a JSON object with a step is skipped: the curve is for people, nothing is decided by it.
    """
    with disk_errors(bundle / METRICS):
        lines = (bundle / METRICS).read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := _row(line)) is not None]
    stride = max(1, math.ceil(len(rows) / _POINTS))
    kept = rows[::-1][::stride][::-1]
    return [
        (f"training/{name}", float(value), int(row["step"]))
        for row in kept
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    ]


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def hyper_params(bundle: Path, result: TrainResult) -> dict[str, object]:
    """Everything that was chosen: the network, its hyper-parameters, the recipe, the seed.

    Raises:
        DataError: the bundle's job document is absent or not valid.
    """
    job = TrainJob.read(bundle / JOB)
    channels, bins = result.model.frame_shape
    return {
        "model": result.model.name,
        "frame_shape": f"{channels}x{bins}",
        **{f"model.{name}": value for name, value in result.model.hyper.items()},
        **{f"train.{name}": value for name, value in job.hyper.as_json().items()},
        **{f"holdout.{name}": value for name, value in job.holdout.as_json().items()},
        "seed": result.seed,
        "world_size": result.world_size,
        "device": result.device,
        "frames_trained": result.frames_trained,
        "base_version": result.base_version or "none",
    }
