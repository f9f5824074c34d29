from __future__ import annotations

import numpy as np
import pytest

from filmloop.core import poisson
from filmloop.core.poisson import RATE_FLOOR, bootstrap_mean, poisson_nll, thin_by_hash

FRAMES = 2000
SHAPE = (4, 8)


def counts_and_ids(rate: float = 3.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    counts_NCE = np.random.default_rng(seed).poisson(rate, (FRAMES, *SHAPE)).astype(np.uint8)
    return counts_NCE, np.arange(1000, 1000 + FRAMES, dtype=np.uint64)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.75])
def test_each_count_is_kept_with_its_probability_and_never_made(keep: float) -> None:
    counts_NCE, ids = counts_and_ids()
    kept_NCE = thin_by_hash(counts_NCE, ids, keep=keep, seed=5)
    assert (kept_NCE <= counts_NCE).all()
    total = counts_NCE.sum()
    assert abs(kept_NCE.sum() / total - keep) < 4 * np.sqrt(keep * (1 - keep) / total)


def test_the_two_parts_are_independent_and_poisson() -> None:
    counts_NCE, ids = counts_and_ids(rate=4.0)
    kept = thin_by_hash(counts_NCE, ids, keep=0.5, seed=5).astype(float).ravel()
    rest = counts_NCE.ravel() - kept
    n = len(kept)  # 64,000 bins: the correlation of independent values has sigma 1/sqrt(n) = 0.004
    assert abs(np.corrcoef(kept, rest)[0, 1]) < 4 / np.sqrt(n)
    # Variance of a Poisson value equals its mean; the estimate's relative sigma is sqrt((2 + 1/mean)/n).
    assert abs(kept.var() / kept.mean() - 1) < 4 * np.sqrt(2.5 / n)


def test_a_frame_is_split_the_same_way_in_any_company() -> None:
    counts_NCE, ids = counts_and_ids()
    whole = thin_by_hash(counts_NCE, ids, keep=0.75, seed=5)
    order = np.random.default_rng(2).permutation(FRAMES)[:300]
    assert np.array_equal(thin_by_hash(counts_NCE[order], ids[order], keep=0.75, seed=5), whole[order])
    assert not np.array_equal(thin_by_hash(counts_NCE, ids, keep=0.75, seed=6), whole)


def test_thinning_takes_full_and_empty_frames_and_no_frames() -> None:
    full = np.full((2, *SHAPE), 255, np.uint8)
    kept = thin_by_hash(full, np.array([1, 2], np.uint64), keep=0.5, seed=0)
    assert abs(kept.mean() - 127.5) < 4 * np.sqrt(255 * 0.25 / kept.size)
    empty = np.zeros((2, *SHAPE), np.uint8)
    assert not thin_by_hash(empty, np.array([1, 2], np.uint64), keep=0.5, seed=0).any()
    assert thin_by_hash(empty[:0], np.zeros(0, np.uint64), keep=0.5, seed=0).shape == (0, *SHAPE)


def test_the_likelihood_is_the_poisson_one() -> None:
    rate = np.array([[[0.5, 2.0]]], np.float32)
    counts = np.array([[[1, 3]]], np.uint8)
    assert poisson_nll(rate, counts)[0] == pytest.approx(2.5 - np.log(0.5) - 3 * np.log(2.0), rel=1e-6)


def test_the_true_rate_has_the_best_likelihood() -> None:
    counts_NCE, _ = counts_and_ids(rate=3.0)
    score = {scale: poisson_nll(np.full((FRAMES, *SHAPE), 3.0 * scale), counts_NCE).mean() for scale in (0.9, 1.0, 1.1)}
    assert score[1.0] < min(score[0.9], score[1.1])


def test_a_rate_of_zero_costs_much_but_not_everything() -> None:
    nll = poisson_nll(np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.uint8))
    assert nll[0] == pytest.approx(-np.log(RATE_FLOOR), rel=1e-4)


def test_the_bootstrap_interval_is_the_normal_one_for_many_frames() -> None:
    values = np.random.default_rng(3).normal(10.0, 2.0, 4000)
    low, high = bootstrap_mean(values)
    sigma = values.std() / np.sqrt(len(values))
    # 2,000 resamples know a 2.5 % quantile to about 5 % of sigma.
    assert low == pytest.approx(values.mean() - 1.96 * sigma, abs=0.2 * sigma)
    assert high == pytest.approx(values.mean() + 1.96 * sigma, abs=0.2 * sigma)
    assert bootstrap_mean(values) == (low, high), "same values, same interval"


def test_the_bootstrap_of_few_frames_is_that_of_many_with_its_draws_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(300.0, 40.0, 700)
    kept = bootstrap_mean(values)
    monkeypatch.setattr(poisson, "_KEPT_DRAWS", 0)
    assert bootstrap_mean(values) == pytest.approx(kept, rel=1e-6)
    assert bootstrap_mean(values[::-1])[0] != bootstrap_mean(values)[0], "it is drawn by number"


def test_the_bootstrap_of_nothing_is_not_a_number() -> None:
    assert np.isnan(bootstrap_mean(np.zeros(0))).all()
