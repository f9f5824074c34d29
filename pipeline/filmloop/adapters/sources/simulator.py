"""The simulated detector as a frame source; the frame number is the pulse id."""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from filmloop.adapters.sources.paced import PacedSource
from filmloop.config.schema import SimulatorSource
from filmloop.core.errors import ConfigError
from filmloop.core.types import SATURATED, FrameBlock
from filmloop.core.wording import in_words
from filmloop_models.cookiebox.simulator import BLOCK_FRAMES, CookieBoxSimulator


def set_up(section: SimulatorSource, frame_shape: tuple[int, int]) -> CookieBoxSimulator:
    """The site's simulator.

    Raises:
        ConfigError: the drift schedule, a dead channel or the number of hits does not fit.
    """
    try:
        return CookieBoxSimulator(section.conditions, seed=section.seed, drift=section.drift, frame_shape=frame_shape)
    except ValueError as exc:
        why = str(exc)
        if isinstance(exc, ValidationError):
            first = exc.errors()[0]
            why = f"[[source.drift]] sets {'.'.join(map(str, first['loc']))}, which {in_words(first)}"
        raise ConfigError(
            f"The simulator cannot be set up: {why}.",
            hint="See [source] in the site file; `filmloop site check` reads it again.",
        ) from exc


def first_frame(section: SimulatorSource, after: tuple[int, int] | None) -> int:
    """Number of the first frame after `after`; frames of another run than the site's are not ours to continue."""
    return after[1] + 1 if after is not None and after[0] == section.run_number else 0


class SimulatorFrameSource(PacedSource):
    """Frames 0, 1, 2, ... of the site's simulator; the same site file gives the same frames anywhere.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E).
    """

    def __init__(self, section: SimulatorSource, frame_shape: tuple[int, int]) -> None:
        super().__init__(
            stream=section.stream, frame_shape=frame_shape, labelled=section.labelled, rate_hz=section.rate_hz
        )
        self._section = section
        self._next = 0
        self._simulator: CookieBoxSimulator | None = None

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Begin, or continue after a frame; frames of another run than the site's are not ours to continue.

        Raises:
            ConfigError: the drift schedule or a dead channel does not fit.
        """
        self._simulator = set_up(self._section, self.frame_shape)
        self._next = first_frame(self._section, after)
        self._start()

    def close(self) -> None:
        """Forget the simulator; may be called twice."""
        super().close()
        self._simulator = None

    def _more(self, wanted: int) -> FrameBlock | None:
        """Whole random blocks, as the simulator draws them anyway."""
        end = -(-(self._next + wanted) // BLOCK_FRAMES) * BLOCK_FRAMES
        if self._section.frames is not None:
            end = min(end, self._section.frames)
        if end <= self._next or self._simulator is None:
            return None
        frames = self._simulator.frames(self._next, end - self._next, truth=self.labelled)
        self._next = end
        return FrameBlock(
            run_number=self._section.run_number,
            pulse_id_N=frames.pulse_id_N,
            counts_NCE=frames.counts_NCE,
            flags_N=np.where(frames.saturated_N, SATURATED, 0).astype(np.uint8),
            label_NCE=frames.rate_NCE,
        )
