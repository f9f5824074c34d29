"""A beam in windows, quiet or drifted, with the NLL of a predictor that knows the mean frame."""

from __future__ import annotations

import numpy as np
import pytest

from filmloop.config.schema import DriftSection
from filmloop.core.poisson import poisson_nll
from filmloop.drift.detect import Detector
from filmloop.drift.moments import moments_of
from filmloop.drift.reference import Reference
from filmloop.drift.window import window_of
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

SIZE, REFERENCE = 512, 8


class Beam:
    """Windows of one seed; `change` may alter the counts (N, C, E) of a window."""

    def __init__(self, seed=11):
        self.seed = seed
        self.mean_CE = self.counts(0).mean(axis=0) + 1e-3
        self.reference = Reference([self.window(number) for number in range(REFERENCE)])

    def counts(self, number, **conditions):
        source = CookieBoxSimulator(Conditions(**conditions), seed=self.seed)
        return source.frames(number * SIZE, SIZE).counts_NCE

    def window(self, number, change=None, **conditions):
        counts_NCE = self.counts(number, **conditions)
        if change is not None:
            counts_NCE = change(counts_NCE)
        nll_N = poisson_nll(np.broadcast_to(self.mean_CE, counts_NCE.shape), counts_NCE)
        return window_of(moments_of(counts_NCE), nll_N)

    def detector(self, **given):
        return Detector(DriftSection(**given), self.reference)


@pytest.fixture(scope="session")
def beam():
    return Beam()


def weaker(channel, gain, seed=5):
    """Thinned counts of one channel: a Poisson frame of a lower rate."""

    def change(counts_NCE):
        counts_NCE = counts_NCE.copy()
        counts_NCE[:, channel] = np.random.default_rng(seed).binomial(counts_NCE[:, channel], gain)
        return counts_NCE

    return change
