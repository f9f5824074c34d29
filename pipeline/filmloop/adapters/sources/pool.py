"""Simulated frames drawn once and shown again and again: a detector at full rate for a small part of a core.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time

import numpy as np

from filmloop.adapters.sources.paced import PacedSource
from filmloop.adapters.sources.simulator import first_frame, set_up
from filmloop.config.sources import SimulatorSource
from filmloop.core.types import SATURATED, FrameBlock
from filmloop_models.cookiebox.simulator import BLOCK_FRAMES, CookieBoxSimulator


class PoolFrameSource(PacedSource):
    """Frames 0, 1, 2, ...; frame i shows number i % pool_frames of the pool. Blocks are views of it.

    The pool is drawn by the first reads, each within its time: whoever waits for frames hears a stop request meanwhile.

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
        self._simulator: CookieBoxSimulator | None = None
        self._pool: FrameBlock | None = None
        self._drawn = 0

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Begin, or continue after a frame.

        Raises:
            ConfigError: the drift schedule or a dead channel does not fit.
        """
        self._simulator = set_up(self._section, self.frame_shape)
        self._pool, self._drawn = self._empty(self._section.pool_frames), 0
        self._next = first_frame(self._section, after)
        self._start()

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """See `filmloop.ports.source.FrameSource.read`."""
        if self._pool is not None and self._drawn < len(self._pool):
            self._draw(self._pool, time.monotonic() + timeout_s)
            if self._drawn < len(self._pool):
                return self._pool[:0]
            self._start()  # the detector begins now: drawing has cost it no frames
        return super().read(max_frames, timeout_s)

    def close(self) -> None:
        """Forget the pool; may be called twice."""
        super().close()
        self._simulator = self._pool = None

    def _empty(self, frames: int) -> FrameBlock:
        shape = (frames, *self.frame_shape)
        return FrameBlock(
            run_number=self._section.run_number,
            pulse_id_N=np.arange(frames, dtype=np.uint64),
            counts_NCE=np.empty(shape, np.uint8),
            flags_N=np.zeros(frames, np.uint8),
            label_NCE=np.empty(shape, np.float32) if self.labelled else None,
        )

    def _draw(self, pool: FrameBlock, until_s: float) -> None:
        """Go on with the pool, a random block at least."""
        while self._simulator is not None and self._drawn < len(pool):
            frames = min(BLOCK_FRAMES, len(pool) - self._drawn)
            drawn = self._simulator.frames(self._drawn, frames, truth=self.labelled)
            places = slice(self._drawn, self._drawn + frames)
            pool.counts_NCE[places] = drawn.counts_NCE
            pool.flags_N[places] = np.where(drawn.saturated_N, SATURATED, 0)
            if pool.label_NCE is not None:
                pool.label_NCE[places] = drawn.rate_NCE
            self._drawn += frames
            if time.monotonic() >= until_s:
                return

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
