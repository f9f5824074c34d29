from __future__ import annotations

import numpy as np
import pytest

from filmloop_models.cookiebox.score import mse_after_gain_and_shift, shifted
from filmloop_models.cookiebox.thinning import thin

LABEL = np.zeros((2, 4, 32), np.float32)
LABEL[:, :, 10:14] = (1, 3, 2, 1)


def test_gain_and_shift_are_found_and_removed() -> None:
    mse, gain, shift = mse_after_gain_and_shift(shifted(LABEL, -2) * 4, LABEL)
    assert (round(mse, 9), gain, shift) == (0, 0.25, 2)


def test_the_error_equals_the_plain_one_at_gain_one_and_no_shift() -> None:
    rng = np.random.default_rng(0)
    prediction = (LABEL + rng.normal(0, 0.1, LABEL.shape)).astype(np.float32)
    mse, *_ = mse_after_gain_and_shift(prediction, LABEL, gain=1.0, shift=0)
    assert mse == pytest.approx(float(((prediction - LABEL) ** 2).mean()), rel=1e-4)
    assert mse_after_gain_and_shift(prediction, LABEL)[0] <= mse


def test_nothing_predicted_costs_the_label_itself() -> None:
    mse, gain, _ = mse_after_gain_and_shift(np.zeros_like(LABEL), LABEL)
    assert gain == 0
    assert mse == pytest.approx(float((LABEL**2).mean()))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        mse_after_gain_and_shift(LABEL[:1], LABEL)


def test_a_split_adds_up_and_keeps_its_share() -> None:
    counts = np.random.default_rng(1).poisson(3.0, (20, 16, 128)).astype(np.uint8)
    split = thin(counts, keep=0.75, seed=2)
    np.testing.assert_allclose(split.input_NCE * 0.75 + split.target_NCE, counts, rtol=1e-6)
    # 123,000 counts: one standard deviation of the share is 0.0012.
    assert split.target_NCE.sum() / counts.sum() == pytest.approx(0.25, abs=0.005)


def test_the_true_rate_has_the_best_likelihood() -> None:
    counts = np.random.default_rng(1).poisson(0.5, (50, 16, 128)).astype(np.uint8)
    split = thin(counts, keep=0.75, seed=2)
    nll = [split.nll(np.full(counts.shape, rate, np.float32)) for rate in (0.4, 0.5, 0.6)]
    assert nll[1] == min(nll)


def test_a_split_that_splits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        thin(np.zeros((1, 4, 4), np.uint8), keep=1.0, seed=0)
