"""A window: sums over some hundred sampled frames. Windows add up, and every statistic and its uncertainty follow.

Every statistic but the likelihood is a ratio sum(a) / sum(b) of two quantities of a frame, so five sums say all of it:
of a, b, a², ab and b². Its variance is that of a - R b over the frames (delta method), which makes no assumption on how
many photons or pulses a shot has: that is measured.

    hits       counts / 1                                     intensity times gain
    share c    counts of channel c / counts                   gain of a channel; shot noise of the beam cancels
    centre c   sum of energies in channel c / its counts
    energy     sum of energies / counts                       photon energy: streaking cancels over the channels
    spread     sum of (energy - mean)² / counts               streaking, mostly
    streak     |first angular harmonic of (energy - mean)|² / pairs of counts: its part that turns with the angle
    width      pairs within 1 bin / pairs within 8 bins       width of a line

Shape suffixes: N frames, C channels, K statistics, M = 5 sums, P = 4 terms of the likelihood.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.core.documents import Document
from filmloop.drift.moments import FrameMoments

Floats = npt.NDArray[np.float64]


def statistics(channels: int) -> tuple[str, ...]:
    """Names of the statistics, in order: K = 2 C + 5."""
    return (
        "hits",
        *(f"share {channel}" for channel in range(channels)),
        *(f"centre {channel}" for channel in range(channels)),
        "energy",
        "spread",
        "streak",
        "width",
    )


class Window(Document):
    """Sufficient statistics of consecutive sampled frames."""

    frames: int = Field(ge=1)
    channels: int = Field(ge=1)
    sums: tuple[tuple[float, ...], ...]
    """Of each statistic: sums over frames of a, b, a², ab, b²."""
    gram: tuple[tuple[float, ...], ...]
    """Products, summed over frames, of 1, hits T, T log(1 + T) and the frame's NLL."""

    @property
    def nll(self) -> float:
        """Mean NLL, nats a frame."""
        return self.gram[0][3] / self.frames

    @property
    def nll_sd(self) -> float:
        """Standard deviation of the NLL of a frame."""
        return float(np.sqrt(max(self.gram[3][3] / self.frames - self.nll**2, 0.0)))

    @property
    def hits_C(self) -> Floats:
        """Mean counts of each channel."""
        return np.array([row[0] for row in self.sums[1 : 1 + self.channels]]) / self.frames

    def ratios(self) -> tuple[Floats, Floats]:
        """Every statistic (K,), and the variance of one frame's part in it (K,): a window's is that over its frames.

        NaN where there was nothing to measure.
        """
        a_K, b_K, aa_K, ab_K, bb_K = np.array(self.sums).T / self.frames
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_K = a_K / b_K
            variance_K = (aa_K - 2 * ratio_K * ab_K + ratio_K**2 * bb_K) / b_K**2
        return ratio_K, np.maximum(variance_K, 0.0)


def window_of(moments: FrameMoments, nll_N: npt.NDArray[np.floating]) -> Window:
    """The sums over these frames."""
    hits_NC, frames = moments.hits_NC, len(moments)
    total_N = hits_NC.sum(axis=1)
    one_N, sum_N = np.ones(frames), moments.energy_NC.sum(axis=1)
    centre = sum_N.sum() / max(total_N.sum(), 1.0)
    # About the window's own centre, so that a shift of all energies is no spread.
    spread_N = moments.square_N - 2 * centre * sum_N + centre**2 * total_N
    turn_C = np.exp(2j * np.pi * np.arange(hits_NC.shape[1]) / hits_NC.shape[1])
    harmonic_N = (moments.energy_NC - centre * hits_NC) @ turn_C
    # Less what every hit makes with itself: |harmonic|² of frames without a pattern is 0 on average.
    streak_N = np.abs(harmonic_N) ** 2 - spread_N
    pairs: list[tuple[Floats, Floats]] = [(total_N, one_N)]
    pairs += [(hits_N, total_N) for hits_N in hits_NC.T]
    pairs += list(zip(moments.energy_NC.T, hits_NC.T, strict=True))
    pairs += [
        (sum_N, total_N),
        (spread_N, total_N),
        (streak_N, total_N * (total_N - 1)),
        (moments.near_N, moments.wide_N),
    ]
    terms_NP = np.stack([*_terms(total_N), nll_N], axis=1)
    return Window(
        frames=frames,
        channels=hits_NC.shape[1],
        sums=tuple((float(a.sum()), float(b.sum()), float(a @ a), float(a @ b), float(b @ b)) for a, b in pairs),
        gram=tuple(map(tuple, (terms_NP.T @ terms_NP).tolist())),
    )


def merged(windows: list[Window]) -> Window:
    """All frames of some windows; at least one."""
    return reduce(_plus, windows)


def _terms(total_N: Floats) -> tuple[Floats, Floats, Floats]:
    return np.ones_like(total_N), total_N, total_N * np.log1p(total_N)


def _plus(one: Window, other: Window) -> Window:
    def add(a: tuple[tuple[float, ...], ...], b: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, (np.array(a) + np.array(b)).tolist()))

    return Window(
        frames=one.frames + other.frames,
        channels=one.channels,
        sums=add(one.sums, other.sums),
        gram=add(one.gram, other.gram),
    )
