"""Sampling weights: how many frames a staged one stands for, where not all were staged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmloop.core.errors import DataError


def mean_one(weight_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """Weights over their mean, (N,); None if all are alike.

    Over the mean of all frames, not of a batch: the ratio of two sums over one batch would be biased by 1 / its size.

    Raises:
        DataError: a weight is not a positive number.
    """
    if not len(weight_N) or (weight_N == weight_N[0]).all():
        return None
    if not (np.isfinite(weight_N) & (weight_N > 0)).all():
        raise DataError(
            "A shard holds sampling weights that are not positive numbers.",
            hint="`filmloop shards verify` finds damaged shards; ship this one again or remove it.",
        )
    return np.asarray(weight_N / weight_N.mean(dtype=np.float64), np.float32)
