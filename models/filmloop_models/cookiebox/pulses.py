"""Sub-pulses read off rates: how many there are, and their streaking phases, by one estimator for every method.

Shape suffixes: N frames, C channels, E energy bins, P lines of a frame, K (amplitude, centre, x, y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop_models.cookiebox.pursuit import TemplatePursuit

_NEAR_WIDTHS = 3.0
"""A line is matched within so many widths: the root of its mean squared distance over the ring."""

_ONE_WIDTHS = 1.0
"""Lines nearer than this are one: without noise, as rates are, the fit shares a line among several at one place."""

_LIT = 0.02
"""Rates below this share of the frame's highest are left out: the estimator's time goes with lit bins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulseScore:
    """How well the sub-pulses come out.

    Attributes:
        count_accuracy: Share of frames with the right number of sub-pulses.
        found: Share of the true sub-pulses that have a partner.
        phase_error_deg: Median error of the phase of those, degrees; NaN if there are none.
    """

    count_accuracy: float
    found: float
    phase_error_deg: float


def read_pulses(rate_NCE: npt.NDArray[np.floating], pursuit: TemplatePursuit) -> npt.NDArray[np.float32]:
    """Lines of every frame, float32 (N, P, 4): amplitude, centre, x, y; amplitude 0 where there is none.

    The estimator is template pursuit on the rates, whoever made them, as if they were counts, with the same kick, width
    and threshold for all. It sees no label. Lines at one place are one.
    """
    highest_N11 = rate_NCE.max(axis=(1, 2), keepdims=True)
    line_NPK = pursuit.lines(np.where(rate_NCE > _LIT * highest_N11, rate_NCE, 0).astype(np.float32))
    for line_PK in line_NPK:
        _merge(line_PK, _ONE_WIDTHS * pursuit.width_bin)
    return line_NPK


def _merge(line_PK: npt.NDArray[np.float32], near_bin: float) -> None:
    """Add every line to the brightest of those within `near_bin` of it, in place; `line_PK` is brightest first."""
    for line in range(len(line_PK)):
        same_P = (line_PK[:, 0] > 0) & (_apart_square(line_PK, line_PK[line]) <= near_bin**2)
        same_P[:line] = False
        if line_PK[line, 0] > 0 and same_P.sum() > 1:
            total = line_PK[same_P, 0].sum()
            line_PK[line, 1:] = line_PK[same_P, 0] @ line_PK[same_P, 1:] / total
            line_PK[same_P, 0] = 0
            line_PK[line, 0] = total


def _apart_square(line_PK: npt.NDArray[np.float32], line_K: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean squared distance of lines from one line over the ring, bins squared, (P,)."""
    away_PK = np.square(line_PK[:, 1:] - line_K[1:])
    return np.asarray(away_PK @ np.array([1.0, 0.5, 0.5], np.float32), np.float32)


def score_pulses(
    found_NPK: npt.NDArray[np.float32], true_NPK: npt.NDArray[np.float32], *, width_bin: float
) -> PulseScore:
    """Compare lines with the true ones, brightest first; each is a partner once.

    The true ones are those of `read_pulses` on the labels where labels are pictures; then the score is the agreement with
    what the same estimator reads off the truth.
    """
    right, true, errors = 0, 0, []
    for found_PK, true_PK in zip(found_NPK, true_NPK, strict=True):
        found_PK, true_PK = found_PK[found_PK[:, 0] > 0], true_PK[true_PK[:, 0] > 0]
        right += len(found_PK) == len(true_PK)
        true += len(true_PK)
        free = np.ones(len(found_PK), np.bool_)
        for line_K in true_PK[np.argsort(-true_PK[:, 0])]:
            apart_P = _apart_square(found_PK, line_K)
            apart_P[~free] = np.inf
            if not free.any() or apart_P.min() > (_NEAR_WIDTHS * width_bin) ** 2:
                continue
            nearest = int(apart_P.argmin())
            free[nearest] = False
            turn = np.arctan2(found_PK[nearest, 3], found_PK[nearest, 2]) - np.arctan2(line_K[3], line_K[2])
            errors.append(abs(np.degrees(np.angle(np.exp(1j * turn)))))
    return PulseScore(
        count_accuracy=right / max(len(true_NPK), 1),
        found=len(errors) / max(true, 1),
        phase_error_deg=float(np.median(errors)) if errors else float("nan"),
    )
