"""Streaked lines as parameters: drawing them, and fitting them to counts by expectation-maximisation.

A line runs at energy centre + x cos(θ_k) + y sin(θ_k) in channel k, θ_k = 2πk/C, with x² + y² = kick².
Lines travel as one float32 array `line_NPK`, whose last axis is (amplitude, centre, x, y): amplitude is the expected
counts in a channel of mean brightness (0: no line), the others are in bins.
Shape suffixes: N frames, C channels, E energy bins, P lines of a frame, L lit bins of all frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_PRIOR = np.float32(1e-3)
"""Weight, in counts, of a line's former place in its next fit: keeps the fit of an empty line solvable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Lines, and what the counts say about what all lines have in common.

    Attributes:
        line_NPK: float32 (N, P, 4).
        width_bin: Width of a line, 1 sigma, as the counts have it.
        background: Rate a bin that no line explains.
    """

    line_NPK: Floats
    width_bin: float
    background: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineModel:
    """What all lines of a run have in common.

    Attributes:
        kick_bin: Radius of (x, y).
        width_bin: Width of a line, 1 sigma.
        background: Flat rate a bin.
        factor_C: float32 (C,), brightness of each channel, 1 on average.
    """

    kick_bin: float
    width_bin: float
    background: float
    factor_C: Floats

    @property
    def basis(self) -> Floats:
        """1, cos θ, sin θ of every channel, (C, 3)."""
        theta_C = 2 * np.pi * np.arange(len(self.factor_C)) / len(self.factor_C)
        return np.stack([np.ones_like(theta_C), np.cos(theta_C), np.sin(theta_C)], axis=1).astype(np.float32)

    def draw(self, line_NPK: Floats, bins: int) -> Floats:
        """Rates of the lines on their background, (N, C, E)."""
        rate_NCE = np.full((len(line_NPK), len(self.factor_C), bins), self.background, np.float32)
        energy_E = np.arange(bins, dtype=np.float32)
        for line in range(line_NPK.shape[1]):
            N = np.flatnonzero(line_NPK[:, line, 0] > 0)
            track_NC = line_NPK[N, line, 1:] @ self.basis.T
            peak_NC = line_NPK[N, line, :1] * (self.factor_C * self._peak)
            z_NCE = (energy_E - track_NC[..., None]) * np.float32(1 / self.width_bin)
            rate_NCE[N] += np.exp(np.float32(-0.5) * z_NCE * z_NCE) * peak_NC[..., None]
        return rate_NCE

    def fit(self, counts_NCE: Floats, line_NPK: Floats, *, rounds: int, free_kick: bool = False) -> Fit:
        """Fit all lines of every frame together, starting from `line_NPK`; only lit bins cost time.

        Each round shares every count among the lines that may have made it (and the background), then gives each
        line the amplitude and the weighted least-squares sinusoid of its share. `free_kick` lets x, y have any radius.
        """
        frames = len(counts_NCE)
        n_L, c_L, e_L = np.nonzero(counts_NCE)
        lit_N = np.bincount(n_L, minlength=frames) > 0
        start_N = np.searchsorted(n_L, np.flatnonzero(lit_N))
        energy_L, basis_LK = e_L.astype(np.float32), self.basis[c_L]
        squares_LK = (basis_LK[:, :, None] * basis_LK[:, None, :]).reshape(-1, 9)
        peak_L = self.factor_C[c_L] * self._peak
        count_L = counts_NCE[n_L, c_L, e_L]
        spread = explained = 0.0
        for _ in range(rounds):
            away_LP = energy_L[:, None] - np.einsum("lpk,lk->lp", line_NPK[n_L, :, 1:], basis_LK)
            share_LP = np.exp(np.float32(-0.5 / self.width_bin**2) * away_LP * away_LP)
            share_LP *= line_NPK[n_L, :, 0] * peak_L[:, None]
            share_LP *= (count_L / (share_LP.sum(axis=1) + np.float32(self.background)))[:, None]
            spread = float(np.einsum("lp,lp,lp->", share_LP, away_LP, away_LP))
            explained = float(share_LP.sum(dtype=np.float64))
            line_NPK = self._regress(line_NPK, share_LP, energy_L, basis_LK, squares_LK, start_N, lit_N)
            if not free_kick:
                radius_NP = np.maximum(np.hypot(line_NPK[..., 2], line_NPK[..., 3]), np.float32(1e-3))
                line_NPK[..., 2:] *= (np.float32(self.kick_bin) / radius_NP)[..., None]
        return Fit(
            line_NPK=line_NPK,
            width_bin=float(np.sqrt(spread / explained)) if explained > 0 else self.width_bin,
            background=max(float(count_L.sum(dtype=np.float64)) - explained, 0.0) / counts_NCE.size,
        )

    @property
    def _peak(self) -> np.float32:
        """Height of a line of one count."""
        return np.float32(1 / (self.width_bin * np.sqrt(2 * np.pi)))

    def _regress(
        self,
        line_NPK: Floats,
        share_LP: Floats,
        energy_L: Floats,
        basis_LK: Floats,
        squares_LK: Floats,
        start_N: npt.NDArray[np.int64],
        lit_N: npt.NDArray[np.bool_],
    ) -> Floats:
        """Amplitude and sinusoid of every line from its share of the counts."""
        new_NPK = np.zeros_like(line_NPK)
        for line in range(line_NPK.shape[1]):
            old_NK, share_L = line_NPK[:, line], share_LP[:, line, None]
            square_NKK = np.zeros((len(old_NK), 9), np.float32)
            moment_NK = np.zeros((len(old_NK), 3), np.float32)
            square_NKK[lit_N] = np.add.reduceat(share_L * squares_LK, start_N) if len(start_N) else 0
            moment_NK[lit_N] = np.add.reduceat(share_L * energy_L[:, None] * basis_LK, start_N) if len(start_N) else 0
            hits_N = square_NKK[:, 0]
            new_NPK[:, line, 0] = np.where(old_NK[:, 0] > 0, hits_N / self.factor_C.sum(), 0)
            square_NKK = square_NKK + _PRIOR * np.eye(3, dtype=np.float32).reshape(-1)
            moment_NK += _PRIOR * old_NK[:, 1:]
            new_NPK[:, line, 1:] = np.linalg.solve(square_NKK.reshape(-1, 3, 3), moment_NK[..., None])[..., 0]
        return new_NPK
