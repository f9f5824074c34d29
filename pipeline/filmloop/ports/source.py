"""Where frames come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from filmloop.core.types import FrameBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceProblems:
    """What a source has had trouble with since it was opened, as of now.

    Attributes:
        malformed_messages: Messages that could not be understood; their frames, if any, are not known.
        refused_frames: Frames of understood messages that could not be delivered, for want of a pulse id.
        bad_frames: Frames delivered with the flag `BAD`.
        missed_updates: Updates that were overwritten before they were read, where the source can tell.
        disconnects: How often the connection was lost.
        silent_s: Seconds since the last frame, or since `open` where there was none; 0 for a source that makes its own.
        last_problem: The newest of these, in words; '' for none.
        alarms: What a person should hear now, a sentence each.
    """

    malformed_messages: int = 0
    refused_frames: int = 0
    bad_frames: int = 0
    missed_updates: int = 0
    disconnects: int = 0
    silent_s: float = 0.0
    last_problem: str = ""
    alarms: tuple[str, ...] = ()


NO_PROBLEMS = SourceProblems()


class FrameSource(Protocol):
    """Detector, simulator or replay. Not thread safe; one reader.

    Attributes:
        stream: Name of this stream of frames; shards of different streams are never mixed.
        frame_shape: (C, E) of every frame.
        labelled: Whether blocks carry `label_NCE`.

    A live source also has `problems`, a `SourceProblems`, to be read between reads with `problems_of`.
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


def problems_of(source: FrameSource) -> SourceProblems:
    """The problems of a source; none for one that does not count any."""
    found = getattr(source, "problems", NO_PROBLEMS)
    return found if isinstance(found, SourceProblems) else NO_PROBLEMS
