from __future__ import annotations

import numpy as np
import pytest

from filmloop.drift.moments import joined, moments_of, width_of, width_share
from filmloop.drift.reference import Reference
from filmloop.drift.window import Window, merged, statistics, window_of


def counts_of(seed=1, frames=64, rate=0.4, shape=(4, 40)):
    return np.random.default_rng(seed).poisson(rate, (frames, *shape)).astype(np.uint8)


def window(counts_NCE, nll_N=None):
    return window_of(moments_of(counts_NCE), np.zeros(len(counts_NCE)) if nll_N is None else nll_N)


def test_moments_are_the_sums_over_hits():
    counts_NCE = counts_of()
    moments = moments_of(counts_NCE)
    energy_E = np.arange(40)
    np.testing.assert_allclose(moments.hits_NC, counts_NCE.sum(axis=2))
    np.testing.assert_allclose(moments.energy_NC, counts_NCE @ energy_E)
    np.testing.assert_allclose(moments.square_N, (counts_NCE @ energy_E**2).sum(axis=1))


def test_pairs_are_those_that_counting_one_by_one_finds():
    counts_NCE = counts_of(frames=3)
    near_N, wide_N = np.zeros(3), np.zeros(3)
    for n, frame in enumerate(counts_NCE):
        for row in frame:
            place = np.repeat(np.arange(40), row)
            apart = np.abs(place[:, None] - place[None, :])
            chance = ((apart >= 12) & (apart <= 16)).sum() / 10
            near_N[n] += (apart <= 1).sum() - len(place) - 3 * chance
            wide_N[n] += (apart <= 8).sum() - len(place) - 17 * chance
    moments = moments_of(counts_NCE)
    np.testing.assert_allclose(moments.near_N, near_N, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(moments.wide_N, wide_N, rtol=1e-4, atol=1e-2)


def test_frames_of_few_bins_have_no_width():
    moments = moments_of(counts_of(shape=(4, 16)))
    assert not moments.near_N.any()
    assert np.isnan(window(counts_of(shape=(4, 16))).ratios()[0][-1])


@pytest.mark.parametrize("width_bin", [1.0, 2.0, 3.5])
def test_the_width_of_a_line_follows_from_its_pairs(width_bin):
    rng = np.random.default_rng(2)
    energy = np.rint(rng.normal(64 + rng.uniform(-0.5, 0.5, (400, 8, 1)), width_bin, (400, 8, 12))).astype(int)
    counts_NCE = np.zeros((400, 8, 128), np.uint8)
    np.add.at(counts_NCE, (np.arange(400)[:, None, None], np.arange(8)[None, :, None], energy), 1)
    moments = moments_of(counts_NCE)
    assert width_of(moments.near_N.sum() / moments.wide_N.sum()) == pytest.approx(width_bin, rel=0.04)
    assert width_of(width_share(width_bin)) == pytest.approx(width_bin, rel=1e-3)


def test_windows_add_up_but_for_their_own_centres():
    counts_NCE = counts_of(frames=200)
    whole = window(counts_NCE)
    parts = merged([window(counts_NCE[:90]), window(counts_NCE[90:])])
    assert parts.frames == whole.frames
    np.testing.assert_allclose(parts.ratios()[0][:10], whole.ratios()[0][:10], rtol=1e-9)
    np.testing.assert_allclose(parts.ratios()[0][10], whole.ratios()[0][10], rtol=0.01)
    both = joined([moments_of(counts_NCE[:90]), moments_of(counts_NCE[90:])])
    np.testing.assert_allclose(window_of(both, np.zeros(200)).ratios()[0], whole.ratios()[0], rtol=1e-6)


def test_a_window_survives_json():
    given = window(counts_of())
    assert Window.model_validate(given.as_json()) == given


def test_the_variance_of_every_statistic_is_that_of_many_windows(beam):
    """Of 60 windows of quiet frames the spread is known to 10 %."""
    counts_NCE = np.concatenate([beam.counts(number) for number in range(8)])
    many = [window(part) for part in np.split(counts_NCE, 64)]
    stated_K = np.sqrt(np.mean([w.ratios()[1] for w in many], axis=0) / many[0].frames)
    seen_K = np.std([w.ratios()[0] for w in many], axis=0, ddof=1)
    assert np.all(seen_K / stated_K < 1.5)
    assert np.all(seen_K / stated_K > 0.6)
    assert len(seen_K) == len(statistics(16))


def test_an_nll_that_only_follows_the_hits_is_no_excess_and_one_that_rises_is():
    rng = np.random.default_rng(0)
    counts_NCE = counts_of(frames=800)
    total_N = counts_NCE.sum(axis=(1, 2)).astype(float)
    nll_N = 3 + 0.5 * total_N - total_N * np.log1p(total_N) + rng.normal(0, 1, 800)
    reference = Reference([window(counts_NCE[:600], nll_N[:600])])
    excess, sd = reference.nll_excess(window(counts_NCE[600:], nll_N[600:]))
    assert abs(excess) < 4 * sd
    assert sd == pytest.approx(1 / 200**0.5, rel=0.4)
    excess, sd = reference.nll_excess(window(counts_NCE[600:], nll_N[600:] + 2))
    assert excess == pytest.approx(2, abs=4 * sd)
    low, high = reference.nll_interval()
    assert low < nll_N[:600].mean() < high
