"""A simulated detector whose beam starts to drift on cue."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from filmloop.adapters.sources.simulator import SimulatorFrameSource
from filmloop.config.schema import SimulatorSource
from filmloop.core.types import FrameBlock
from filmloop_models.cookiebox.conditions import DriftStep
from filmloop_models.cookiebox.simulator import CookieBoxSimulator


class CuedSimulator:
    """The site's simulator; `drift` appends a step to its schedule from the next frame on. Frames before stay as they were.

    Implements `filmloop.ports.source.FrameSource`; `drift` and `truth` may be called from another thread.
    """

    def __init__(self, section: SimulatorSource, frame_shape: tuple[int, int]) -> None:
        self.stream, self.frame_shape, self.labelled = section.stream, frame_shape, section.labelled
        self._section = section
        self._inner = SimulatorFrameSource(section, frame_shape)
        self._last: tuple[int, int] | None = None
        self._mutex = threading.Lock()

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Begin, or continue after a frame."""
        self._last = after
        self._inner.open(after=after)

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """The next frames."""
        with self._mutex:
            block = self._inner.read(max_frames, timeout_s)
            if block is not None and len(block):
                self._last = block.run_number, int(block.pulse_id_N[-1])
            return block

    def close(self) -> None:
        """Forget the simulator."""
        self._inner.close()

    def drift(self, values: Mapping[str, float], *, over_frames: int) -> int:
        """Move the conditions to `values` over the next `over_frames` frames; returns the first of them."""
        with self._mutex:
            first = 0 if self._last is None else self._last[1] + 1
            step = DriftStep(from_frame=first, to_frame=first + over_frames, set=dict(values))
            self._section = self._section.model_copy(update={"drift": (*self._section.drift, step)})
            self._inner.close()
            self._inner = SimulatorFrameSource(self._section, self.frame_shape)
            self._inner.open(after=self._last)
            return first

    def truth(self) -> CookieBoxSimulator:
        """A second simulator with the same schedule, for the true rates of frames that were delivered."""
        section = self._section
        return CookieBoxSimulator(
            section.conditions, seed=section.seed, drift=section.drift, frame_shape=self.frame_shape
        )
