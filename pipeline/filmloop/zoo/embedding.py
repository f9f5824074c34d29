"""What frames look like, in some fifty numbers that need no label: the index of the zoo.

Two sets of frames taken under the same conditions have nearly the same numbers, whatever shots they hold; what drifts
shows in the number that is named after it. Shape suffixes: N frames, C channels, E energy bins, K sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.core.documents import Document

_GROUPS: dict[str, tuple[float, float]] = {
    # What is compared: the difference that counts as 1, and the noise of one frame (both in the unit of the number).
    # Noise: standard deviation between sets of 1,024 simulated frames at the default conditions, times 32.
    "intensity": (0.1, 0.55),
    "shot to shot": (0.1, 0.3),
    "channels": (0.1, 0.2),
    "energy": (1.0, 13.0),
    "streaking": (1.0, 5.5),
    "line width": (0.25, 2.3),
}
_BINS = 128
"""Scales in bins are meant for so many; frames with fewer or more bins have them in proportion."""
_BLOCK_FRAMES = 1024


class DataEmbedding(Document):
    """What a set of frames looks like. Energies and widths are in bins."""

    scheme: Literal[1] = Field(1, description="version of these numbers; others do not compare")
    frames: int = Field(ge=1, description="frames that it was taken from")
    energy_bins: int = Field(ge=1)
    hits: float = Field(ge=0, description="mean counts of a frame")
    spread: float = Field(ge=0, description="relative spread of a frame's counts, 1 sigma")
    share_C: tuple[float, ...] = Field(description="each channel's share of the counts")
    centre_C: tuple[float, ...] = Field(description="mean energy of each channel's counts")
    width_C: tuple[float, ...] = Field(description="spread of each channel's counts over energy, 1 sigma")
    line: float = Field(ge=0, description="width of a line in one channel of one frame, from distances between hits")

    def in_words(self) -> str:
        """The conditions in one line."""
        centre = float(np.dot(self.share_C, self.centre_C))
        dark = [str(channel) for channel, share in enumerate(self.share_C) if share * len(self.share_C) < 0.02]
        dead = f", channel {', '.join(dark)} dead" if dark and self.hits else ""
        return f"{self.hits:.0f} hits a frame, energy {centre:.1f}, line {self.line:.2f} bins{dead}"


def embed(counts_NCE: npt.NDArray[np.uint8]) -> DataEmbedding:
    """The numbers of a set of frames; 6 ms for 1,000 of 16 x 128 on one core.

    Raises:
        ValueError: there is no frame.
    """
    frames, _channels, bins = counts_NCE.shape
    if frames == 0:
        raise ValueError("no frame to look at")
    hits_N = counts_NCE.reshape(frames, -1).sum(axis=1, dtype=np.int64).astype(np.float64)
    mean_CE = counts_NCE.sum(axis=0, dtype=np.int64) / frames
    hits_C, energy_E = mean_CE.sum(axis=1), np.arange(bins)
    seen_C = np.maximum(hits_C, 1e-12)
    centre_C = np.where(hits_C > 0, mean_CE @ energy_E / seen_C, 0.0)
    square_C = np.where(hits_C > 0, mean_CE @ energy_E**2 / seen_C, 0.0) - centre_C**2
    return DataEmbedding(
        frames=frames,
        energy_bins=bins,
        hits=_short(hits_N.mean()),
        spread=_short(hits_N.std() / max(hits_N.mean(), 1e-12)),
        share_C=tuple(_short(share) for share in hits_C / max(hits_C.sum(), 1e-12)),
        centre_C=tuple(_short(centre) for centre in centre_C),
        width_C=tuple(_short(width) for width in np.sqrt(np.maximum(square_C, 0.0))),
        line=_short(_line_width(counts_NCE)),
    )


def difference(a: DataEmbedding, b: DataEmbedding) -> dict[str, float]:
    """How far apart two sets of frames are, by what differs; 1 is a drift worth noticing, or what few frames hide.

    Sets of other shapes are infinitely far apart.
    """
    if not _compare(a, b):
        return {"frame shape": math.inf}
    return {name: float(apart_K[0]) for name, apart_K in _differences([a], b).items()}


def distance(a: DataEmbedding, b: DataEmbedding) -> float:
    """All differences in one number, the square root of the sum of their squares."""
    return math.hypot(*difference(a, b).values())


def distances(many: Sequence[DataEmbedding], other: DataEmbedding) -> npt.NDArray[np.float64]:
    """`distance` of each of them, (K,), all at once: a thousand take 10 ms."""
    apart_K = np.full(len(many), np.inf)
    alike = [number for number, each in enumerate(many) if _compare(each, other)]
    if alike:
        apart = _differences([many[number] for number in alike], other)
        apart_K[alike] = np.sqrt(np.square(list(apart.values())).sum(axis=0))
    return apart_K


def _compare(a: DataEmbedding, b: DataEmbedding) -> bool:
    """Whether they are of one scheme and of frames of one shape."""
    return a.scheme == b.scheme and len(a.share_C) == len(b.share_C) and a.energy_bins == b.energy_bins


def _differences(many: Sequence[DataEmbedding], other: DataEmbedding) -> dict[str, npt.NDArray[np.float64]]:
    """Of each of them from `other`, (K,), by what differs."""
    frames_K, hits_K, spread_K, line_K = np.array([(e.frames, e.hits, e.spread, e.line) for e in many], np.float64).T
    share_KC, centre_KC, width_KC = (
        np.array([getattr(e, n) for e in many]) for n in ("share_C", "centre_C", "width_C")
    )
    # A channel that is dead in one of them has no energy there to compare: its share tells.
    both_KC = np.minimum(share_KC, other.share_C)
    bin_scale = other.energy_bins / _BINS
    value_GK = {
        "intensity": np.abs(np.log(np.maximum(hits_K, 1e-9) / max(other.hits, 1e-9))),
        "shot to shot": np.abs(spread_K - other.spread),
        # Relative to an even share; a dead channel of 16 makes 0.26.
        "channels": np.sqrt(np.square(share_KC - other.share_C).mean(axis=1)) * len(other.share_C),
        "energy": _mean_apart(centre_KC, other.centre_C, both_KC) / bin_scale,
        "streaking": _mean_apart(width_KC, other.width_C, both_KC) / bin_scale,
        "line width": np.abs(line_K - other.line) / bin_scale,
    }
    few_K = 1 / frames_K + 1 / other.frames
    return {
        name: value_K / np.hypot(_GROUPS[name][0], _GROUPS[name][1] * np.sqrt(few_K))
        for name, value_K in value_GK.items()
    }


def _line_width(counts_NCE: npt.NDArray[np.uint8]) -> float:
    """Width of a line, from pairs of hits in one channel of one frame: their distances vary by twice its square.

    Pairs from different lines are spread over all distances; as many as there are at larger ones are taken off. Lines
    that nearly meet make it larger than it is, 3.2 bins for 2.0 at the simulator's defaults: it is there to be compared.
    """
    bins = counts_NCE.shape[2]
    near = max(2, bins // 8)
    far = min(2 * near, bins - 1)
    pairs_D = np.zeros(far + 1)
    for start in range(0, len(counts_NCE), _BLOCK_FRAMES):
        part = counts_NCE[start : start + _BLOCK_FRAMES].reshape(-1, bins).astype(np.float32)
        pair_EE = part.T @ part
        pairs_D[1:] += [np.trace(pair_EE, offset=apart) * bins / (bins - apart) for apart in range(1, far + 1)]
    apart_D = np.arange(1, near + 1)
    excess_D = pairs_D[1 : near + 1] - pairs_D[near + 1 :].mean()
    total = excess_D.sum()
    return math.sqrt(max(float(excess_D @ apart_D**2), 0.0) / total / 2) if total > 0 else 0.0


def _mean_apart(
    a_KC: npt.NDArray[np.float64], b_C: tuple[float, ...], share_KC: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mean distance of two numbers a channel: channels without counts, which have no energy, weigh nothing."""
    total_K = np.maximum(share_KC.sum(axis=1), 1e-12)
    return np.asarray(np.sqrt((share_KC * np.square(a_KC - b_C)).sum(axis=1) / total_K))


def _short(value: float) -> float:
    """Five digits: a registry's tag holds 5,000 characters."""
    return float(f"{value:.5g}")
