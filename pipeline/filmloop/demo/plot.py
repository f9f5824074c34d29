"""The demo as a picture: loss against the truth over time, with what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filmloop.demo.watch import Sample


def plot_story(target: Path, samples: Sequence[Sample], events: Sequence[tuple[float, str]]) -> None:
    """Write a PNG: one dot a sample, coloured by the version that served it; a line for every event."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]  # Okabe and Ito: safe for colour-blind readers
    for index, version in enumerate(sorted({sample.version for sample in samples})):
        own = [sample for sample in samples if sample.version == version]
        axes.plot(
            [s.at_s for s in own], [s.loss for s in own], ".", ms=5, color=colours[index % len(colours)],
            label=f"version {version} live",
        )  # fmt: skip
    for at_s, text in events:
        axes.axvline(at_s, color="0.75", lw=0.8, zorder=0)
        axes.annotate(
            text, (at_s, 1), xycoords=("data", "axes fraction"), xytext=(2, -3), textcoords="offset points",
            rotation=90, va="top", ha="left", fontsize=8, color="0.35",
        )  # fmt: skip
    axes.set(
        xlabel="time, s", yscale="log", ylabel="loss of the served rates, nats a frame\n(KL divergence from the simulated truth)",
        title="filmloop demo: the beam drifts, the loop brings the quality back",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    if samples:
        axes.legend(loc="center left", frameon=False)
    figure.savefig(target, dpi=120)
    plt.close(figure)
