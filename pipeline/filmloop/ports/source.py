"""Where frames come from."""

from __future__ import annotations

from typing import Protocol

from filmloop.core.types import FrameBlock


class FrameSource(Protocol):
    """Detector, simulator or replay. Not thread safe; one reader.

    Attributes:
        stream: Name of this stream of frames; shards of different streams are never mixed.
        frame_shape: (C, E) of every frame.
        labelled: Whether blocks carry `label_NCE`.
    """

    stream: str
    frame_shape: tuple[int, int]
    labelled: bool

    def open(self, *, after: tuple[int, int] | None) -> None:
        """Begin, or continue right after the frame `after = (run_number, pulse_id)`.

        A source that can go back (simulator, replay) yields every later frame again; a live one cannot and begins
        with the present.

        Raises:
            DataError: the data are absent or of an unknown form.
        """

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """The next 0 to `max_frames` frames, all of one run; None at the end of the data.

        Blocks at most about `timeout_s` seconds; a block of length 0 means that nothing came in that time. A frame
        that is damaged comes all the same, flagged `BAD`.

        Raises:
            DataError: the data cannot be read here; `open(after=...)` and another `read` may work.
            TransientError: they are away for now.
        """

    def close(self) -> None:
        """Release files and sockets; may be called twice."""
