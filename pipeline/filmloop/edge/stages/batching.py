"""How many frames inference takes at once.

A small batch is soon there; a large one spares Python's part of it, some 80 us, 5 % of the rate in batches of 256. While
inference keeps up, batches are as large as the latency budget allows. Once more of them wait than can be done within it,
catching up comes first: what waits is taken in ever larger pieces.
"""

from __future__ import annotations

from filmloop.edge.runtimes.pending import BACKLOG_FRAMES
from filmloop.ports.runtime import InferenceRuntime

_PILED_UP = 4
"""With more batches than these waiting the latency budget is missed anyway."""
_SHARE = 16
"""A piece is at most so small a part of what waits, so that the others of a runtime's lanes find something, too."""
_MOST_S = 0.02
"""Nor does it take longer than this, at the pace of late: a slow network's pieces stay small, and a stop never waits."""


class Batching:
    """Remembers the pace at which frames were inferred.

    Args:
        dense: Rates leave the runtime, which keeps them for every batch under way: 8 kB a frame of 16x128. Pieces stay small.
    """

    def __init__(self, *, dense: bool = False) -> None:
        self._dense = dense
        self._pace_hz, self._inferred, self._at_s = 0.0, 0, 0.0

    def note(self, inferred: int, now_s: float) -> None:
        """Take the number of frames inferred so far; to be called a few times a second."""
        if self._at_s and now_s > self._at_s:
            self._pace_hz = max(0, inferred - self._inferred) / (now_s - self._at_s)
        self._inferred, self._at_s = inferred, now_s

    def frames(self, waiting: int, runtime: InferenceRuntime) -> int:
        """Frames of the next batch when `waiting` are there."""
        if waiting <= _PILED_UP * runtime.batch_frames:
            return min(waiting, runtime.batch_frames)
        least = min(runtime.most_frames, max(runtime.batch_frames, BACKLOG_FRAMES))
        many = 0 if self._dense else min(waiting // _SHARE, int(_MOST_S * self._pace_hz)) // least * least
        return min(waiting, runtime.most_frames, max(least, many))
