"""Sampling weights have mean 1, or there are none."""

from __future__ import annotations

import numpy as np
import pytest

from filmloop.core.errors import DataError
from filmloop.core.weights import mean_one


def test_weights_have_mean_one_and_keep_their_ratios() -> None:
    weight_N = mean_one(np.array([1, 100, 100, 1], np.float32))
    assert weight_N is not None
    assert weight_N.dtype == np.float32
    assert weight_N.mean() == pytest.approx(1.0)
    assert weight_N[1] / weight_N[0] == pytest.approx(100.0)


@pytest.mark.parametrize("weights", [[], [3.0], [7.0, 7.0]])
def test_weights_that_are_all_alike_are_none(weights: list[float]) -> None:
    assert mean_one(np.array(weights, np.float32)) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_positive_number_is_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="not positive"):
        mean_one(np.array([1.0, bad, 2.0], np.float32))
