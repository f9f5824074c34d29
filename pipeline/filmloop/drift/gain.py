"""What is done at once about channels that changed for themselves: their counts are scaled before the network, and its
rates back, so that they predict what the detector counts. Dead channels are masked.

Shape suffixes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import DriftSection
from filmloop.core.documents import Document
from filmloop.drift.explain import Channels

_LEAST_RATE = 1e-3
"""A masked channel's rates are scaled to this share of what the network says: dark counts cost nats, not all of them."""
_STEP = 0.01
"""Gains that differ by less are not worth another change."""


class Gain(Document):
    """Gains relative to the reference of the live version. Counts are divided by them, rates multiplied."""

    gain_C: tuple[float, ...]
    dead: tuple[int, ...] = ()

    @property
    def before_C(self) -> npt.NDArray[np.float32]:
        """Factor of the counts."""
        factor_C = 1 / np.array(self.gain_C)
        factor_C[list(self.dead)] = 0
        return factor_C.astype(np.float32)

    @property
    def after_C(self) -> npt.NDArray[np.float32]:
        """Factor of the rates."""
        factor_C = np.array(self.gain_C)
        factor_C[list(self.dead)] = _LEAST_RATE
        return factor_C.astype(np.float32)

    def is_near(self, other: Gain | None, step: float = _STEP) -> bool:
        """Whether no gain differs from that of `other` by more than `step`, relative; the default is next to nothing."""
        if other is None or self.dead != other.dead:
            return False
        return bool(np.abs(np.array(self.gain_C) / np.array(other.gain_C) - 1).max() < step)


def gain_for(channels: Channels, section: DriftSection) -> Gain | None:
    """The correction for what `channels` shows; None if there is nothing to correct, or too little left to trust it.

    Only channels that surely changed are corrected, by at most `largest_gain`.
    """
    if not section.correct_gain or not (channels.changed_C.any() or channels.dead_C.any()):
        return None
    if channels.dead_C.sum() > len(channels.dead_C) / 2:
        return None
    gain_C = np.where(channels.changed_C, channels.gain_C, 1.0)
    gain_C = np.clip(gain_C, 1 / section.largest_gain, section.largest_gain)
    return Gain(gain_C=tuple(gain_C.round(4).tolist()), dead=tuple(np.flatnonzero(channels.dead_C).tolist()))


def gain_told(board: Mapping[str, Any]) -> tuple[float, ...]:
    """The gains that the inference stage says it corrects, 0 for dead channels; empty if it does not."""
    told = (board.get("drift") or {}).get("gain")
    if not told:
        return ()
    return tuple(0.0 if channel in told["dead"] else gain for channel, gain in enumerate(told["gain_C"]))
