"""What is normal for a version: its first windows at the edge.

They are measured there, and not taken from the bundle's evaluation: the same runtime and sampling, the beam as it is
when the version goes live, and the input beside the likelihood, which training does not report. The price is that
nothing is tested while the first windows are taken, and that a drift of before the swap is part of what is normal.

Shape suffixes: K statistics, P = 4 terms of the likelihood.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from filmloop.core.poisson import two_sided_z
from filmloop.drift.window import Window, merged

Floats = npt.NDArray[np.float64]


class Reference:
    """The windows of a version taken together.

    The NLL of a frame follows its hits: two pulses cost more nats than one, which says nothing about the weights. So
    NLLs are compared with what this version scored on frames with as many hits: a fit of a + b T + c T log(1 + T).

    Args:
        windows: At least one.
    """

    def __init__(self, windows: list[Window]) -> None:
        self.window = merged(windows)
        gram_PP = np.array(self.window.gram)
        self._inverse = np.linalg.pinv(gram_PP[:3, :3])
        self._weights_P = np.append(-(self._inverse @ gram_PP[:3, 3]), 1.0)

    @cached_property
    def ratios(self) -> tuple[Floats, Floats]:
        """See `Window.ratios`."""
        return self.window.ratios()

    def nll_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the mean NLL, from the spread over the frames."""
        half = two_sided_z(1 - confidence) * self.window.nll_sd / self.window.frames**0.5
        return self.window.nll - half, self.window.nll + half

    def nll_excess(self, window: Window) -> tuple[float, float]:
        """Mean NLL above what these weights scored on frames with as many hits, and its standard deviation; nats."""
        gram_PP, frames = np.array(window.gram), window.frames
        excess = float(gram_PP[0] @ self._weights_P / frames)
        variance = max(self._variance(window) - excess**2, self._variance(self.window))
        mean_P = gram_PP[0, :3] / frames
        # The second part is the uncertainty of the fit where the window's frames lie.
        return excess, float(np.sqrt(variance / frames + self._variance(self.window) * mean_P @ self._inverse @ mean_P))

    def _variance(self, window: Window) -> float:
        """Mean square of the frames' distances from the fit."""
        gram_PP = np.array(window.gram)
        return max(float(self._weights_P @ gram_PP @ self._weights_P) / window.frames, 1e-12)
