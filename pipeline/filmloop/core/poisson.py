"""Poisson thinning and its likelihood: how a model is scored without labels.

A Poisson frame split at random into two parts, each count going left with probability `keep`, gives two independent
Poisson frames. A model that sees the left part predicts the right one; the better it knows the rate, the better the
likelihood (count splitting: Neufeld et al., Biostatistics 25, 2024; Poisson thinning is textbook).
Shape suffixes: N frames, C channels, E energy bins, H hits, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from filmloop.core.holdout import splitmix64

_AT_ONCE_FRAMES, _AT_ONCE_DRAWS = 128, 200_000
"""What is worked on at a time stays in the processor's cache."""
_KEPT_DRAWS = 4_000_000
"""Up to 16 MB of draws are kept from one bootstrap to the next."""

RATE_FLOOR = 1e-6
"""Smallest rate a likelihood is taken of: one surprising count costs 14 nats, not infinity."""


def thin_by_hash(
    counts_NCE: npt.NDArray[np.uint8], pulse_id_N: npt.NDArray[np.uint64], *, keep: float, seed: int
) -> npt.NDArray[np.uint8]:
    """The kept part of every frame, (N, C, E) uint8; the other part is `counts_NCE` minus it.

    Whether a hit is kept depends on the hash of (seed, pulse id, bin, number of the hit in its bin) alone: the same
    frame is split the same way on every host, in every set of frames, for ever.
    """
    kept_NCE = np.empty(counts_NCE.shape, np.uint8)
    per_frame_N = splitmix64(pulse_id_N.astype(np.uint64) ^ splitmix64(np.array([seed], np.uint64)))
    for start in range(0, len(counts_NCE), _AT_ONCE_FRAMES):
        part = slice(start, start + _AT_ONCE_FRAMES)
        kept_NCE[part] = _kept(counts_NCE[part], per_frame_N[part], keep)
    return kept_NCE


def _kept(counts_NCE: npt.NDArray[np.uint8], per_frame_N: npt.NDArray[np.uint64], keep: float) -> npt.NDArray[np.uint8]:
    frames, bins = len(counts_NCE), int(np.prod(counts_NCE.shape[1:]))
    flat = counts_NCE.reshape(-1)
    lit = np.flatnonzero(flat)
    count = flat[lit].astype(np.int64)
    where_H = np.repeat(lit, count)
    first = np.cumsum(count) - count
    nth_H = (np.arange(len(where_H)) - np.repeat(first, count)).astype(np.uint64)
    frame_H, bin_H = where_H // bins, (where_H % bins).astype(np.uint64)
    with np.errstate(over="ignore"):
        hash_H = splitmix64(per_frame_N[frame_H] + bin_H * np.uint64(256) + nth_H)
    kept_H = hash_H < np.uint64(int(keep * 2.0**64))
    return np.bincount(where_H[kept_H], minlength=frames * bins).astype(np.uint8).reshape(counts_NCE.shape)


def poisson_nll(rate_NCE: npt.NDArray[np.floating], counts_NCE: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood of each frame, (N,) nats, without the log b! term that no model can change."""
    rate = np.maximum(rate_NCE, RATE_FLOOR, dtype=np.float32)
    frames = len(rate)
    total = rate.reshape(frames, -1).sum(axis=1, dtype=np.float64)
    hit = (counts_NCE * np.log(rate)).reshape(frames, -1).sum(axis=1, dtype=np.float64)
    return np.asarray(total - hit, dtype=np.float64)


def bootstrap_mean(
    values_N: npt.NDArray[np.float64], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 7
) -> tuple[float, float]:
    """Two-sided percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13)."""
    frames = len(values_N)
    if frames == 0:
        return float("nan"), float("nan")
    if frames * resamples <= _KEPT_DRAWS:
        centre = values_N.mean()
        means_R = centre + _drawn(frames, resamples, seed) @ (values_N - centre).astype(np.float32) / frames
    else:
        means_R = np.concatenate([values_N[drawn_RN].mean(axis=1) for drawn_RN in _draws(frames, resamples, seed)])
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(frames: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Numbers of the frames in each resample, (R, N), some resamples at a time."""
    rng, rows = np.random.default_rng(seed), max(1, _AT_ONCE_DRAWS // frames)
    for start in range(0, resamples, rows):
        yield rng.integers(0, frames, (min(rows, resamples - start), frames))


@lru_cache(maxsize=2)
def _drawn(frames: int, resamples: int, seed: int) -> npt.NDArray[np.float32]:
    """How often each frame is in each resample, (R, N): kept, because many scores of the same few frames are compared."""
    times_RN, done = np.empty((resamples, frames), np.float32), 0
    for drawn_RN in _draws(frames, resamples, seed):
        places = drawn_RN + np.arange(0, drawn_RN.size, frames)[:, None]
        times_RN[done : done + len(drawn_RN)] = np.bincount(places.ravel(), minlength=drawn_RN.size).reshape(
            places.shape
        )
        done += len(drawn_RN)
    return times_RN


def two_sided_z(probability: float) -> float:
    """How many standard deviations a Gaussian is away from its mean, either way, with this probability."""
    return NormalDist().inv_cdf(1 - probability / 2)
