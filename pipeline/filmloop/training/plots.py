"""Three pictures for people who look at a version in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # no display on a compute node
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from filmloop.core.documents import EvaluationReport

_INK, _BLUE, _ORANGE = "#333333", "#3567a5", "#d1732f"


def plot_training(path: Path, metrics: Path) -> None:
    """Loss and hold-out score over steps, from the lines of `metrics.jsonl`."""
    lines = _metrics_lines(metrics)
    figure, axes = _figure(7, 3.2)
    _line(axes, lines, "loss", _BLUE)
    axes.set(xlabel="step", ylabel="training loss a bin")
    score = next((name for name in ("nll", "mse") if any(name in line for line in lines)), None)
    if score is not None:
        right = axes.twinx()
        _line(right, lines, score, _ORANGE, marker="o")
        right.set_ylabel("hold-out NLL, nats a frame" if score == "nll" else "hold-out MSE a bin", color=_ORANGE)
    _save(figure, path)


def plot_frame(path: Path, counts_CE: npt.NDArray[np.uint8], rate_CE: npt.NDArray[np.float32]) -> None:
    """One held-out frame: what the detector counted, and what the model makes of it."""
    figure = Figure(figsize=(8, 3.2))
    # Single hits saturate the scale of a sparse frame: both are shown up to the 99.5 % quantile of the rate.
    top = max(float(np.quantile(rate_CE, 0.995)), 1e-3)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, image, title in ((left, counts_CE, "counts"), (right, rate_CE, "rate, expected counts")):
        shown = axes.imshow(
            image, aspect="auto", origin="lower", vmin=0, vmax=top, cmap="magma", interpolation="nearest"
        )
        axes.set(title=title, xlabel="energy bin")
    left.set_ylabel("channel")
    # Margins by hand: finding them takes longer than all the rest.
    figure.subplots_adjust(left=0.07, right=0.9, bottom=0.15, top=0.9, wspace=0.05)
    figure.colorbar(shown, cax=figure.add_axes((0.92, 0.15, 0.015, 0.75)))
    _save(figure, path)


def plot_scores(path: Path, reports: Mapping[str, EvaluationReport]) -> None:
    """Nats a frame that each predictor is better than the constant one, with the 95 % interval of its own mean."""
    zero = reports["zero"].nll
    named = [(name, report) for name, report in reports.items() if name != "zero"]
    gain = [zero - report.nll for _, report in named]
    spread = [
        [report.nll_high - report.nll for _, report in named],
        [report.nll - report.nll_low for _, report in named],
    ]
    figure, axes = _figure(5, 3.2)
    axes.bar([name for name, _ in named], gain, yerr=spread, color=_BLUE, ecolor=_INK, capsize=4)
    axes.set_ylabel("nats a frame better than\na constant rate")
    _save(figure, path)


def _metrics_lines(metrics: Path) -> list[dict[str, float]]:
    """The lines that are whole; a power cut may leave one that is not, and no picture is worth the bundle."""
    lines = []
    for text in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.8 / width, right=1 - 0.75 / width, bottom=0.15, top=0.95)
    axes.spines[["top"]].set_visible(False)
    return figure, axes


def _line(axes: Any, lines: list[dict[str, float]], key: str, colour: str, marker: str = "") -> None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, linewidth=1.2)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
