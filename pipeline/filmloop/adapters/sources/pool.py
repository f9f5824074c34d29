"""Simulated frames drawn once and shown again and again: a detector at full rate for a small part of a core.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import numpy as np

from filmloop.adapters.sources.paced import PacedSource
from filmloop.adapters.sources.simulator import first_frame, set_up
from filmloop.config.sources import SimulatorSource
from filmloop.core.types import SATURATED, FrameBlock


class PoolFrameSource(PacedSource):
    """Frames 0, 1, 2, ...; frame i shows number i % pool_frames of the pool. Blocks are views of it.

    Args:
        section: The site's `[source]`, with `pool_frames` above 0.
        frame_shape: (C, E).
    """

    def __init__(self, section: SimulatorSource, frame_shape: tuple[int, int]) -> None:
        super().__init__(
            stream=section.stream, frame_shape=frame_shape, labelled=section.labelled, rate_hz=section.rate_hz
        )
        self._section = section
        self._next = 0
        self._pool: FrameBlock | None = None

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Draw the pool, then begin, or continue after a frame.

        Raises:
            ConfigError: the drift schedule or a dead channel does not fit.
        """
        section = self._section
        drawn = set_up(section, self.frame_shape).frames(0, section.pool_frames, truth=self.labelled)
        self._pool = FrameBlock(
            run_number=section.run_number,
            pulse_id_N=drawn.pulse_id_N,
            counts_NCE=drawn.counts_NCE,
            flags_N=np.where(drawn.saturated_N, SATURATED, 0).astype(np.uint8),
            label_NCE=drawn.rate_NCE,
        )
        self._next = first_frame(section, after)
        self._start()

    def close(self) -> None:
        """Forget the pool; may be called twice."""
        super().close()
        self._pool = None

    def _more(self, wanted: int) -> FrameBlock | None:
        """All up to the end of the pool: a view costs nothing."""
        if self._pool is None:
            return None
        start = self._next % len(self._pool)
        frames = len(self._pool) - start
        if self._section.frames is not None:
            frames = min(frames, self._section.frames - self._next)
        if frames <= 0:
            return None
        shown = self._pool[start : start + frames]
        block = FrameBlock(
            run_number=shown.run_number,
            pulse_id_N=np.arange(self._next, self._next + frames, dtype=np.uint64),
            counts_NCE=shown.counts_NCE,
            flags_N=shown.flags_N,
            label_NCE=shown.label_NCE,
        )
        self._next += frames
        return block
