"""Which frames are kept, and that weights make what was kept stand for all."""

from __future__ import annotations

import numpy as np
import pytest

from filmloop.config.schema import StagingSection
from filmloop.core.holdout import held_out
from filmloop.staging.sampling import WINDOW_FRAMES, Sampler

FRAMES = 200_000


def sampler(every: int, surprising: float = 0.0) -> Sampler:
    return Sampler(StagingSection(keep_every=every, keep_surprising=surprising))


def run(
    sampler: Sampler, ids_N: np.ndarray, surprise_N: np.ndarray | None, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The choice over a stream in blocks."""
    parts = [slice(start, start + block) for start in range(0, len(ids_N), block)]
    chosen = [sampler.choose(ids_N[part], None if surprise_N is None else surprise_N[part]) for part in parts]
    return np.concatenate([keep_N for keep_N, _ in chosen]), np.concatenate([weight_N for _, weight_N in chosen])


def stream(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pulse ids with gaps, a surprise with a long tail that drifts, and a quantity that goes with it."""
    rng = np.random.default_rng(seed)
    # Far apart for every seed: a pulse id that two streams share would be picked in both.
    ids_N = np.cumsum(rng.integers(1, 4, FRAMES)).astype(np.uint64) + np.uint64(seed * 10**9)
    surprise_N = (rng.gumbel(0, 1, FRAMES) + np.linspace(0, 2, FRAMES)).astype(np.float32)
    value_N = surprise_N + rng.normal(0, 1, FRAMES)
    return ids_N, surprise_N, value_N


@pytest.mark.parametrize("surprise", [True, False])
def test_without_sampling_every_frame_is_kept_and_weighs_one(surprise: bool) -> None:
    ids_N, surprise_N, _ = stream()
    keep_N, weight_N = run(sampler(1, 0.1), ids_N, surprise_N if surprise else None)
    assert keep_N.all()
    assert (weight_N == 1).all()


@pytest.mark.parametrize("every", [2, 10, 97])
def test_one_frame_in_n_is_kept_and_weighs_n(every: int) -> None:
    ids_N, _, _ = stream()
    keep_N, weight_N = run(sampler(every), ids_N, None)
    # Four standard deviations of a binomial.
    assert abs(keep_N.mean() - 1 / every) < 4 * np.sqrt((1 / every) * (1 - 1 / every) / FRAMES)
    assert (weight_N == every).all()
    assert (keep_N.dtype, weight_N.dtype) == (np.bool_, np.float32)


def test_the_choice_by_hash_does_not_depend_on_blocks_or_on_a_restart() -> None:
    ids_N, _, _ = stream()
    whole, _ = run(sampler(7), ids_N, None, block=FRAMES)
    np.testing.assert_array_equal(run(sampler(7), ids_N, None, block=100)[0], whole)
    np.testing.assert_array_equal(run(sampler(7), ids_N[5000:], None)[0], whole[5000:])


@pytest.mark.parametrize(("every", "permille"), [(2, 1), (10, 5), (50, 10)])
def test_the_choice_is_independent_of_the_hold_out(every: int, permille: int) -> None:
    # Few are held out and n divides 1000: with the same hash, n times as many of those kept would be.
    ids_N, _, _ = stream()
    keep_N, _ = run(sampler(every), ids_N, None)
    share = held_out(ids_N[keep_N], permille).mean()
    expected = permille / 1000
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / keep_N.sum())


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_about_the_share_asked_for_is_surprising_and_weighs_one(share: float) -> None:
    ids_N, surprise_N, _ = stream()
    keep_N, weight_N = run(sampler(20, share), ids_N, surprise_N)
    surprising_N = weight_N == 1
    assert keep_N[surprising_N].all()
    assert set(np.unique(weight_N)) == {1, 20}
    # The threshold lags behind a surprise that drifts by 2 over the stream, so somewhat more than the share is above.
    assert share * 0.9 < surprising_N.mean() < share * 1.3
    assert surprise_N[surprising_N].mean() > surprise_N.mean() + surprise_N.std()


def test_the_weighted_mean_of_what_was_kept_is_the_mean_of_all_and_the_plain_mean_is_not() -> None:
    biases, errors, plain = [], [], []
    for seed in range(20):
        ids_N, surprise_N, value_N = stream(seed)
        keep_N, weight_N = run(sampler(20, 0.05), ids_N, surprise_N)
        estimate = (weight_N * value_N)[keep_N].sum() / FRAMES
        # Variance of the Horvitz-Thompson sum: only frames that the hash decides on add to it, each (n - 1) x^2.
        by_hash_N = weight_N > 1
        errors.append(np.sqrt(19 * (value_N[by_hash_N] ** 2).sum()) / FRAMES)
        biases.append(estimate - value_N.mean())
        plain.append(value_N[keep_N].mean() - value_N.mean())
    score = np.array(biases) / np.array(errors)
    # Standard normal: the mean of 20 within three of its own errors, and none of them far out.
    assert abs(score.mean()) < 3 / np.sqrt(20)
    assert 0.5 < score.std() < 1.6
    assert np.abs(score).max() < 4
    assert min(plain) > 50 * max(errors)


def test_the_threshold_for_a_block_is_fixed_before_the_block_is_seen() -> None:
    ids_N, surprise_N, _ = stream()
    ours, other = sampler(5, 0.1), sampler(5, 0.1)
    for chooser in (ours, other):
        run(chooser, ids_N[:10_000], surprise_N[:10_000])
    assert ours.threshold == other.threshold
    part = slice(10_000, 12_000)
    before = ours.threshold
    _, weight_N = ours.choose(ids_N[part], surprise_N[part])
    np.testing.assert_array_equal(weight_N == 1, surprise_N[part] > before)
    # Nor does it know what the hash does: other pulse ids, the same threshold afterwards.
    other.choose(ids_N[part] + np.uint64(10**9), surprise_N[part])
    assert ours.threshold == other.threshold != before


def test_nothing_surprises_before_there_is_something_to_compare_with() -> None:
    ids_N, surprise_N, _ = stream()
    chooser = sampler(4, 0.5)
    assert chooser.threshold == np.inf
    _, weight_N = chooser.choose(ids_N[:200], surprise_N[:200])
    assert (weight_N == 4).all()
    chooser.choose(ids_N[200:400], surprise_N[200:400])
    assert chooser.threshold < np.inf


def test_the_threshold_follows_a_drift_within_the_window() -> None:
    ids_N, surprise_N, _ = stream()
    chooser = sampler(4, 0.05)
    run(chooser, ids_N[:20_000], surprise_N[:20_000])
    before = chooser.threshold
    moved_N = surprise_N[20_000 : 20_000 + 2 * WINDOW_FRAMES] + 100
    run(chooser, ids_N[: len(moved_N)], moved_N)
    assert chooser.threshold - before == pytest.approx(100, abs=1)


def test_frames_whose_surprise_nobody_knows_are_left_to_the_hash() -> None:
    ids_N, surprise_N, _ = stream()
    chooser = sampler(4, 0.05)
    run(chooser, ids_N[:20_000], surprise_N[:20_000])
    before = chooser.threshold
    keep_N, weight_N = chooser.choose(ids_N, np.full(FRAMES, np.nan, np.float32))
    assert (weight_N == 4).all()
    assert abs(keep_N.mean() - 0.25) < 0.01
    assert chooser.threshold == before


def test_a_block_longer_than_the_window_and_an_empty_one_are_taken() -> None:
    ids_N, surprise_N, _ = stream()
    chooser = sampler(4, 0.05)
    chooser.choose(ids_N, surprise_N)
    assert chooser.threshold == pytest.approx(np.quantile(surprise_N[-WINDOW_FRAMES:], 0.95))
    keep_N, weight_N = chooser.choose(ids_N[:0], surprise_N[:0])
    assert len(keep_N) == len(weight_N) == 0
