"""What is kept of a sampled frame: a few sums of its counts. From these follow hits, energies, streaking and line width.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NEAR, _WIDE = 1, 8
_RING = (11, 16)
"""Two hits of one line lie some bins apart, those of different lines anywhere: pairs up to 1 and up to 8 bins apart,
less what pairs 12 to 16 bins apart say of the second kind, tell the width of a line."""
_LEAST_BINS = 2 * _RING[1] + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMoments:
    """Sums over the hits of each frame.

    Attributes:
        hits_NC: Hits of each channel.
        energy_NC: Sum of their energies, bins.
        square_N: Sum of the squared energies of all hits.
        near_N: Pairs of hits of one channel at most 1 bin apart, more than by chance; 0 for frames of few bins.
        wide_N: The same at most 8 bins apart.
    """

    hits_NC: Floats
    energy_NC: Floats
    square_N: Floats
    near_N: Floats
    wide_N: Floats

    def __len__(self) -> int:
        """Number of frames, N."""
        return len(self.square_N)


def moments_of(counts_NCE: npt.NDArray[np.uint8]) -> FrameMoments:
    """The moments of some frames; 20 us a frame of 16 x 128."""
    counts = counts_NCE.astype(np.float32)
    bins = counts.shape[2]
    energy_E = np.arange(bins, dtype=np.float64)
    sums_NC3 = counts @ np.stack([np.ones(bins), energy_E, energy_E**2], axis=1).astype(np.float32)
    near_N, wide_N = _pairs(counts) if bins >= _LEAST_BINS else np.zeros((2, len(counts)))
    return FrameMoments(
        hits_NC=sums_NC3[:, :, 0].astype(np.float64),
        energy_NC=sums_NC3[:, :, 1].astype(np.float64),
        square_N=sums_NC3[:, :, 2].sum(axis=1, dtype=np.float64),
        near_N=near_N,
        wide_N=wide_N,
    )


def joined(parts: list[FrameMoments]) -> FrameMoments:
    """The frames of all parts, in order."""
    return FrameMoments(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("hits_NC", "energy_NC", "square_N", "near_N", "wide_N")
        }
    )


def width_share(width_bin: float) -> float:
    """Expected near / wide pairs of a Gaussian line of this width, 1 sigma in bins: falls from 1 to 3/17."""
    return float(np.interp(width_bin, _WIDTHS, _SHARES))


def width_of(share: float) -> float:
    """The width of a line whose near / wide pairs have this share, bins; the inverse of `width_share`."""
    return float(np.interp(-share, -_SHARES, _WIDTHS))


def _pairs(counts_NCE: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    frames, channels, bins = counts_NCE.shape
    margin = _RING[1]
    before = np.zeros((frames, channels, bins + 2 * margin + 1), np.float32)
    np.cumsum(counts_NCE, axis=2, out=before[:, :, margin + 1 : margin + 1 + bins])
    before[:, :, margin + 1 + bins :] = before[:, :, margin + bins, None]

    def within(reach: int) -> Floats:
        """Sum over hits of how many hits lie at most `reach` bins away, itself included."""
        box = before[:, :, margin + reach + 1 :][:, :, :bins] - before[:, :, margin - reach :][:, :, :bins]
        return np.asarray(np.einsum("nce,nce->n", counts_NCE, box), np.float64)

    itself_N = counts_NCE.sum(axis=(1, 2), dtype=np.float64)
    near_N, wide_N = within(_NEAR) - itself_N, within(_WIDE) - itself_N
    chance_N = (within(_RING[1]) - within(_RING[0])) / (2 * (_RING[1] - _RING[0]))
    return near_N - (2 * _NEAR + 1) * chance_N, wide_N - (2 * _WIDE + 1) * chance_N


def _shares(widths: Floats) -> Floats:
    """near / wide for Gaussian lines: energies of two hits differ by a Gaussian of sqrt(2) times the width."""
    fine = np.linspace(-60.0, 60.0, 24001)
    density = np.exp(-0.25 * (fine / widths[:, None]) ** 2)
    # Two energies in bins d apart differ by d +- 1 with a triangular weight.
    lag = np.arange(-_RING[1], _RING[1] + 1)
    triangle = np.maximum(1 - np.abs(fine - lag[:, None]), 0)
    pairs = density @ triangle.T
    chance = pairs[:, np.abs(lag) > _RING[0]].mean(axis=1, keepdims=True)
    pairs = pairs - chance
    return np.asarray(
        pairs[:, np.abs(lag) <= _NEAR].sum(axis=1) / pairs[:, np.abs(lag) <= _WIDE].sum(axis=1), np.float64
    )


_WIDTHS = np.linspace(0.2, 6.0, 117)
_SHARES = _shares(_WIDTHS)
