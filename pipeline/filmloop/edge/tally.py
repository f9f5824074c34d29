"""Adding up what became of the frames: one immutable Accounting after the other, so that threads may share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from filmloop.core.documents import Accounting, PulseRange

NO_MODEL = "no_model"
"""Not inferred: there are no weights yet. Staged all the same."""
DUPLICATE = "duplicate"
"""Neither inferred nor staged: a frame of this run and pulse id came before."""
LATE = "late"
"""Neither inferred nor staged: so far behind the newest frame that nobody knows whether it came before."""
OVERFLOW = "overflow"
"""Neither inferred nor staged: there was no room for it."""
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
NOT_SAMPLED = "not_sampled"
"""Inferred, not staged: the site keeps a sample."""
STAGING_KILLED = "staging_killed"
"""Inferred, not staged: the process that held the open shard was ended by force."""

PASSED = (DUPLICATE, LATE, BAD_FRAME, OVERFLOW)
"""Reasons for which a frame is not even inferred; without weights there is NO_MODEL too."""


def add(left: Accounting, right: Accounting) -> Accounting:
    """The sum, field by field and reason by reason."""
    return Accounting(
        frames_in=left.frames_in + right.frames_in,
        frames_inferred=left.frames_inferred + right.frames_inferred,
        frames_staged=left.frames_staged + right.frames_staged,
        frames_dropped=add_reasons(left.frames_dropped, right.frames_dropped),
        frames_unstaged=add_reasons(left.frames_unstaged, right.frames_unstaged),
        frames_missing=left.frames_missing + right.frames_missing,
        frames_out_of_order=left.frames_out_of_order + right.frames_out_of_order,
    )


def neither(accounting: Accounting) -> int:
    """Frames that were neither inferred nor staged: their reason is the same in both tables."""
    unstaged = accounting.frames_unstaged
    return sum(min(frames, unstaged.get(reason, 0)) for reason, frames in accounting.frames_dropped.items())


def note(ranges: list[PulseRange], new: PulseRange) -> None:
    """Add `new`; frames lost in a row for one reason become one range."""
    if ranges and (ranges[-1].reason, ranges[-1].run_number) == (new.reason, new.run_number):
        new = _around((ranges.pop(), new))
    ranges.append(new)


def merged(ranges: Sequence[PulseRange]) -> list[PulseRange]:
    """One range for each reason and run: so many frames as before, somewhere within it."""
    alike: dict[tuple[str, int | None], list[PulseRange]] = {}
    for each in ranges:
        alike.setdefault((each.reason, each.run_number), []).append(each)
    return [_around(found) for found in alike.values()]


def _around(ranges: Sequence[PulseRange]) -> PulseRange:
    found = {
        "first_pulse_id": min(each.first_pulse_id for each in ranges),
        "last_pulse_id": max(each.last_pulse_id for each in ranges),
        "frames": sum(each.frames for each in ranges),
    }
    return ranges[0].model_copy(update=found)


def add_reasons(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """The sum, reason by reason; reasons without a frame are left out."""
    total = {reason: left.get(reason, 0) + right.get(reason, 0) for reason in (*left, *right)}
    return {reason: frames for reason, frames in total.items() if frames}
