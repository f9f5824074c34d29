"""A sequential test of every new window against the reference, with a stated rate of false alarms.

Every statistic gives a z: its distance from the reference, less what the site says is no drift, over the standard
deviation of that distance, both windows' measured. It is tested for the newest window, which finds a step at once, and
for the newest eight together, which finds what is three times smaller. An alarm is a z beyond a threshold that all
statistics at both scales together pass in `false_alarms_per_1000` of 1,000 quiet windows (Bonferroni, so at most).

Shape suffixes: K statistics, and K1 with the likelihood behind them.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import DriftSection
from filmloop.core.poisson import two_sided_z
from filmloop.drift.moments import width_of, width_share
from filmloop.drift.reference import Reference
from filmloop.drift.window import Window, merged, statistics

Floats = npt.NDArray[np.float64]

SCALES = (1, 8)
"""Windows that are tested together."""
_QUIET = 4
"""Windows in a row without a deviation that end an alarm."""
_BASIS = 4
"""Newest windows of an alarm that tell its magnitude."""
NLL = "nll"


def threshold(section: DriftSection, channels: int) -> float:
    """|z| that raises an alarm."""
    tests = len(SCALES) * (len(statistics(channels)) + 1)
    return two_sided_z(section.false_alarms_per_1000 / 1000 / tests)


def allowed(section: DriftSection, reference: Reference) -> Floats:
    """By how much each statistic may differ, (K,): what the site calls no drift."""
    channels, (ratio_K, _) = reference.window.channels, reference.ratios
    size_K = np.abs(ratio_K)
    width = width_of(ratio_K[-1])
    return np.concatenate(
        [
            size_K[:1] * section.least_intensity,
            size_K[1 : 1 + channels] * section.least_gain,
            np.full(channels + 1, section.least_energy_bins),
            # Both go with the square of the amplitude.
            size_K[-3:-1] * 2 * section.least_streaking,
            [abs(width_share(width * (1 + section.least_width)) - width_share(width))],
        ]
    )


def deviations(window: Window, reference: Reference, section: DriftSection) -> Floats:
    """z of every statistic, (K1,); 0 where there is nothing to compare. A likelihood that is better is no drift."""
    (now_K, var_now_K), (then_K, var_then_K) = window.ratios(), reference.ratios
    # A window with few large shots has a small mean and a small variance: on its own it would find too much.
    var_K = np.fmax(var_now_K, var_then_K)
    sd_K = np.sqrt(var_K / window.frames + var_then_K / reference.window.frames)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart_K = now_K - then_K
        z_K = np.sign(apart_K) * np.maximum(np.abs(apart_K) - allowed(section, reference), 0) / sd_K
    excess, sd = reference.nll_excess(window)
    z_nll = max(excess - section.least_nll * abs(reference.window.nll), 0.0) / sd
    return np.append(np.nan_to_num(z_K, nan=0.0, posinf=0.0, neginf=0.0), z_nll)


class Detector:
    """Tests one window after the other.

    Args:
        section: Rates and tolerances.
        reference: What is normal.

    Attributes:
        names: Of the statistics, (K1,).
        limit: |z| that raises an alarm.
        alarm: Whether there is one.
        z_K1: Of the newest window, by the scale at which it is larger.
        lasted: Windows that were tested during this alarm; 0 without one, or in one that was taken over.
        fired: Whether the newest window deviates.
        nll_fired: Whether the likelihood alone would raise one now.
    """

    def __init__(self, section: DriftSection, reference: Reference) -> None:
        self.reference, self._section = reference, section
        self.names = (*statistics(reference.window.channels), NLL)
        self.limit = threshold(section, reference.window.channels)
        self.alarm, self.fired, self.nll_fired = False, False, False
        self.z_K1 = np.zeros(len(self.names))
        self._recent: deque[Window] = deque(maxlen=max(SCALES))
        self._served: deque[Window] = deque(maxlen=max(SCALES))
        self.lasted, self._quiet, self._at_once = 0, 0, False

    def resume(self) -> None:
        """An alarm of a former life goes on until windows say otherwise."""
        self.alarm = True

    def served_anew(self) -> None:
        """The frames are inferred otherwise from here on: former likelihoods say nothing about it."""
        self._served.clear()
        self.nll_fired = False

    def take(self, window: Window) -> bool:
        """Test one window; returns whether there is an alarm."""
        self._recent.append(window)
        self._served.append(window)
        by_scale = [self._z(list(windows)) for windows in self._scales(self._recent)]
        self.z_K1 = max(by_scale[0], by_scale[-1], key=lambda z_K1: float(np.abs(z_K1).max()))
        nll = [self._z(list(windows))[-1] for windows in self._scales(self._served)]
        self.z_K1[-1] = max(nll)
        self.nll_fired = max(nll) > self.limit
        at_once = bool((np.abs(by_scale[0][:-1]) > self.limit).any())
        self.fired = at_once or self.nll_fired or bool((np.abs(by_scale[-1][:-1]) > self.limit).any())
        if self.fired:
            self._at_once = at_once or (self._at_once and self.lasted > 0)
            self.alarm, self._quiet = True, 0
            self.lasted += 1
        elif self.alarm:
            self._quiet, self.lasted = self._quiet + 1, self.lasted + 1
            if self._quiet >= _QUIET:
                self.alarm, self.lasted = False, 0
                self._recent.clear()
        return self.alarm

    def basis(self) -> Window:
        """The windows that say how large the drift is now: not the one in which it began, where there are others."""
        recent = list(self._recent)
        if not self._at_once:
            return merged(recent)
        return merged(recent[-min(max(self.lasted - 1, 1), _BASIS) :])

    def _scales(self, windows: deque[Window]) -> list[list[Window]]:
        """The newest window, and the newest eight if there are so many."""
        return [list(windows)[-scale:] for scale in SCALES if len(windows) >= scale]

    def _z(self, windows: list[Window]) -> Floats:
        return deviations(merged(windows), self.reference, self._section)
