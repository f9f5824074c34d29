"""Frames gathered to windows, without those of a lost beam: dark frames say nothing of weights, gains or what is normal.

Single frames may be empty by chance, so short blocks are judged. A block in which the beam went or came may be half
dark; so the ones next to a dark one are left out too.

Shape suffixes: N frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import DriftSection
from filmloop.drift.moments import FrameMoments, joined
from filmloop.drift.reference import Reference
from filmloop.drift.window import Window, window_of

_DARK = 0.05
"""Share of the reference's counts below which the beam is off."""
_DARK_OF_A_CHANNEL = 0.1
"""The same in counts a channel and frame, without a reference; dark counts of the detector are some 0.06."""
_BLOCK_FRAMES = 16
_BLOCKS = 16
"""Blocks in a window, where it is large enough."""


def least_hits(reference: Reference | None, channels: int) -> float:
    """Counts a frame below which the beam is off."""
    return _DARK_OF_A_CHANNEL * channels if reference is None else _DARK * float(reference.window.hits_C.sum())


def beam_off_told(board: Mapping[str, Any]) -> bool:
    """Whether the inference stage says that the beam is off."""
    return any(finding["kind"] == "beam_off" for finding in (board.get("drift") or {}).get("findings", ()))


class Sieve:
    """Makes windows of scored frames.

    Attributes:
        off: Whether the beam is off: half a window's frames in a row were dark, and none has light yet.
        hits: Counts a frame of the newest dark block.
    """

    def __init__(self, section: DriftSection) -> None:
        self._window_frames = section.window_frames
        self._block_frames = min(section.window_frames, max(_BLOCK_FRAMES, section.window_frames // _BLOCKS))
        self._block: list[tuple[FrameMoments, npt.NDArray[np.float64]]] = []
        self._kept: list[tuple[FrameMoments, npt.NDArray[np.float64]]] = []
        self._dark_frames, self.hits = 0, 0.0

    @property
    def off(self) -> bool:
        """See above."""
        return self._dark_frames >= self._window_frames / 2

    @property
    def frames(self) -> int:
        """Gathered for the next window."""
        return _frames(self._kept) + (0 if self._dark_frames else _frames(self._block))

    def take(self, moments: FrameMoments, nll_N: npt.NDArray[np.float64], least: float) -> Window | None:
        """Add frames; the window, if they complete one.

        Args:
            moments: Of the frames.
            nll_N: Their NLL, nats.
            least: Counts a frame below which the beam is off.
        """
        self._block.append((moments, nll_N))
        if _frames(self._block) < self._block_frames:
            return None
        block, self._block = _together(self._block), []
        hits = float(block[0].hits_NC.sum()) / len(block[0])
        if hits < least:
            if not self._dark_frames and self._kept:
                self._kept.pop()
            self._dark_frames, self.hits = self._dark_frames + len(block[0]), hits
            return None
        if self._dark_frames:
            self._dark_frames = 0
            return None
        self._kept.append(block)
        if _frames(self._kept) < self._window_frames:
            return None
        whole, self._kept = _together(self._kept), []
        return window_of(*whole)


def _frames(parts: list[tuple[FrameMoments, npt.NDArray[np.float64]]]) -> int:
    return sum(len(moments) for moments, _ in parts)


def _together(
    parts: list[tuple[FrameMoments, npt.NDArray[np.float64]]],
) -> tuple[FrameMoments, npt.NDArray[np.float64]]:
    return joined([moments for moments, _ in parts]), np.concatenate([nll_N for _, nll_N in parts])
