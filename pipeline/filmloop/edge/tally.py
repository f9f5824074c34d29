"""Adding up what became of the frames: one immutable Accounting after the other, so that threads may share them."""

from __future__ import annotations

from collections.abc import Mapping

from filmloop.core.documents import Accounting, PulseRange

NO_MODEL = "no_model"
"""Not inferred: there are no weights yet. Staged all the same."""
DUPLICATE = "duplicate"
"""Neither inferred nor staged: the pulse id is not above the one before it."""
BAD_FRAME = "bad_frame"
"""Neither inferred nor staged: damaged, or of another shape."""
QUEUE_FULL = "queue_full"
"""Inferred, not staged: staging could not keep up."""
DISK_FULL = "disk_full"
"""Inferred, not staged: no space left."""
DISK_ERROR = "disk_error"
"""Inferred, not staged: the disk refused for another reason."""
STOPPED = "stopped"
"""Inferred, not staged: the edge had to stop before staging was through. A source that can go back brings them again."""


def add(left: Accounting, right: Accounting) -> Accounting:
    """The sum, field by field and reason by reason."""
    return Accounting(
        frames_in=left.frames_in + right.frames_in,
        frames_inferred=left.frames_inferred + right.frames_inferred,
        frames_staged=left.frames_staged + right.frames_staged,
        frames_dropped=_add_reasons(left.frames_dropped, right.frames_dropped),
        frames_unstaged=_add_reasons(left.frames_unstaged, right.frames_unstaged),
        frames_missing=left.frames_missing + right.frames_missing,
    )


def lost(frames: int, reason: str) -> Accounting:
    """`frames` that came in and were neither inferred nor staged."""
    return Accounting(frames_in=frames, frames_dropped={reason: frames}, frames_unstaged={reason: frames})


def unstaged(frames: int, reason: str) -> Accounting:
    """`frames` counted in elsewhere that were not staged."""
    return Accounting(frames_unstaged={reason: frames})


def note(ranges: list[PulseRange], new: PulseRange) -> None:
    """Add `new`; frames lost in a row for one reason become one range."""
    if ranges and ranges[-1].reason == new.reason:
        last = ranges.pop()
        new = new.model_copy(update={"first_pulse_id": last.first_pulse_id, "frames": last.frames + new.frames})
    ranges.append(new)


def _add_reasons(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    total = dict(left)
    for reason, frames in right.items():
        if frames:
            total[reason] = total.get(reason, 0) + frames
    return total
