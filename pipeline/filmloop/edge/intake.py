"""What is let in: sound frames of the right shape that did not come before; the rest is counted.

Senders work side by side, so frames may come in any order. The newest `WINDOW` pulse ids below the highest one are
remembered one by one: an id that was seen is a duplicate, one that was not is out of order and welcome. What is older
than the window is late: nobody could tell whether it came before. If nothing but late frames comes, the numbering has
begun anew, one damaged id had moved the window far ahead, or one sender lags and the others pause: the window goes to
where the frames are, and back to where it was when the others go on. The number of
a frame that is flagged as damaged is believed only near the others of its run, and a run that no shard could be named
after is damage.
Shape suffixes: N frames let in, D frames delivered, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import PulseRange
from filmloop.core.types import BAD, MAX_RUN, FrameBlock
from filmloop.edge.former import Former
from filmloop.edge.ring import CAME_WITH
from filmloop.edge.tally import BAD_FRAME, LATE, OVERFLOW

WINDOW = 1 << 18
"""Pulse ids that are remembered: 2.6 s at 100,000 frames a second."""

LATE_IN_A_ROW = 4096
"""So many late frames and no other: the window is in the wrong place."""

MAX_ID = 1 << 62
"""A pulse id above this is damaged."""

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One block after the door.

    Attributes:
        block: The frames let in; may be none.
        came_with_NK: int64 (N, len(CAME_WITH)), the counts when each of them came, itself included.
        passed: Frames that were not let in, and why, where that is not a mere duplicate.
    """

    block: FrameBlock
    came_with_NK: npt.NDArray[np.int64]
    passed: tuple[PulseRange, ...] = ()


def sound_or_bad(block: FrameBlock) -> Iterator[FrameBlock]:
    """`block` in parts that are either sound as a whole or flagged `BAD` as a whole."""
    bad_D = (block.flags_N & BAD != 0) | (block.pulse_id_N > MAX_ID)
    edges = [0, *(np.flatnonzero(bad_D[1:] != bad_D[:-1]) + 1).tolist(), len(block)] if bad_D.any() else [0, len(block)]
    for start, stop in pairwise(edges):
        yield block[start:stop]


class Intake:
    """Lets frames in, remembers which came, and counts.

    Args:
        frame_shape: (C, E) that frames must have.
        last: (run number, pulse id) of the last frame of an earlier life; None begins anew.
        counts: What an earlier life counted.
        recent: Pulse ids of that run that are known to have come, in the order of their arrival; what is below the lowest
            counts as seen, what is between them and not among them does not.

    Attributes:
        last: (run number, highest pulse id) so far.
        counts: By the names in `CAME_WITH`, since the beginning of the stream.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int],
        last: tuple[int, int] | None,
        counts: dict[str, int],
        recent: Ids | None = None,
    ) -> None:
        self.last, self.counts = last, counts
        self._frame_shape = frame_shape
        # The place of an id is its remainder. Where there is no memory, ids of an earlier life count as seen.
        self._seen = np.full(WINDOW, last is not None, np.bool_)
        self._first = 0 if last is None else last[1] + 1
        self._late_in_a_row, self._leap = 0, 0
        self._former: Former | None = None
        self._missing_before_run = counts["missing"]
        if last is not None and recent is not None and len(recent):
            # The lowest, not the first that came: a sender that lags brings what lies below that one.
            self._first = min(max(int(recent.min()), last[1] - WINDOW + 1, 0), last[1] + 1)
            self._seen[_places(np.arange(self._first, last[1] + 1, dtype=np.uint64))] = False
            self._seen[_places(recent[(recent >= np.uint64(self._first)) & (recent <= np.uint64(last[1]))])] = True

    def admit(self, block: FrameBlock) -> Arrival:
        """Check `block`, all of it sound or all of it damaged; at least one frame."""
        if self._is_bad(block):
            return self._admit_bad(block)
        ids_D, run = block.pulse_id_N, block.run_number
        if self.last is None or self.last[0] != run:
            self._begin(run, int(ids_D[0]))
            self._former, self._missing_before_run = None, self.counts["missing"]
        elif self._late_in_a_row >= LATE_IN_A_ROW and int(ids_D[0]) <= self._highest - WINDOW:
            self._leave(int(ids_D[0]))
        at = None if self._former is None else self._former.entered_at(ids_D)
        if at is None:
            return self._admit(block)
        before = self._admit(block[:at]) if at else None
        self._return()
        after = self._admit(block[at:])
        return after if before is None else _joined(before, after)

    def overflow(self, block: FrameBlock) -> tuple[PulseRange, ...]:
        """Count frames for which there is no room; says what is to be told of them."""
        arrival = self.admit(block)
        self.counts["overflow"] += len(arrival.block)
        return (*arrival.passed, *_told(arrival.block, OVERFLOW))

    @property
    def _highest(self) -> int:
        assert self.last is not None
        return self.last[1]

    def _leave(self, first: int) -> None:
        """Nothing but late frames come: the window goes to them."""
        assert self.last is not None
        if self._leap:
            # All that came since a leap was late: nothing was missing there, and nobody goes on from there.
            self.counts["missing"] -= self._leap
        else:
            missing = self.counts["missing"]
            self._former = Former(
                highest=self._highest,
                first=self._first,
                seen_W=self._seen.copy(),
                missing=missing,
                gaps=missing - self._missing_before_run,
            )
        self._begin(self.last[0], first)

    def _return(self) -> None:
        """Frames go on in the former window: it is taken up again, and what was let in meanwhile is missing no more."""
        assert self.last is not None
        assert self._former is not None
        former, self._former = self._former, None
        self.last, self._first, self._seen = (self.last[0], former.highest), former.first, former.seen_W
        self.counts["missing"] = former.missing - former.came
        self._late_in_a_row, self._leap = 0, 0

    def _begin(self, run: int, first: int) -> None:
        """Frames of a run that was not seen before, or is numbered anew."""
        self._seen[:] = False
        self.last, self._first, self._late_in_a_row, self._leap = (run, first - 1), first, 0, 0

    def _admit(self, block: FrameBlock) -> Arrival:
        ids_D, highest = block.pulse_id_N, self._highest
        rising = int(ids_D[0]) > highest and bool((ids_D[1:] > ids_D[:-1]).all())
        arrival = self._admit_rising(block, highest) if rising else self._admit_any(block, highest)
        if self._former is not None:
            self._former = self._former.after(arrival.block.pulse_id_N, self._highest)
        return arrival

    def _admit_bad(self, block: FrameBlock) -> Arrival:
        """Of damaged frames none is let in; the place of those that may be what they say counts."""
        near_D = np.zeros(len(block), np.bool_)
        if self.last is not None and self.last[0] == block.run_number:
            near_D = block.pulse_id_N <= np.uint64(min(self._highest + WINDOW - 1, MAX_ID))
        far = _pick(block, ~near_D)
        self.counts["frames_in"] += len(far)
        self.counts["bad_frame"] += len(far)
        told = _told(far, BAD_FRAME)
        if near_D.any():
            near = self._admit(_pick(block, near_D))
            self.counts["bad_frame"] += len(near.block)
            told = (*told, *near.passed, *_told(near.block, BAD_FRAME))
        return Arrival(block=block[:0], came_with_NK=np.zeros((0, len(CAME_WITH)), np.int64), passed=told)

    def _remember(self, ids: Ids, highest: int, new_highest: int) -> None:
        """Move the window up to `new_highest` and mark `ids` in it."""
        if new_highest - highest >= WINDOW:
            self._seen[:] = False
        elif new_highest > highest:
            first, stop = (highest + 1) % WINDOW, (new_highest + 1) % WINDOW
            if first < stop:
                self._seen[first:stop] = False
            else:
                self._seen[first:] = False
                self._seen[:stop] = False
        # After a jump inside a block the ids before it have no place any more.
        self._seen[_places(ids[ids + np.uint64(WINDOW) > np.uint64(max(new_highest, 0))])] = True

    def _leapt(self, steps_D: npt.NDArray[np.int64], fresh_D: npt.NDArray[np.bool_]) -> None:
        """Remember what a jump beyond the window adds to the missing ones, until a frame that is not late follows."""
        jumps = np.flatnonzero(steps_D >= WINDOW)
        if len(jumps) and not fresh_D[jumps[-1] + 1 :].any():
            self._leap = int(steps_D[jumps[-1]]) - 1
        elif fresh_D.any():
            self._leap = 0

    def _admit_rising(self, block: FrameBlock, highest: int) -> Arrival:
        """The common case: every id is above all before."""
        ids_N = block.pulse_id_N.astype(np.int64)
        self._remember(block.pulse_id_N, highest, int(ids_N[-1]))
        self._leapt(np.diff(ids_N, prepend=highest), np.ones(len(block), np.bool_))
        self.last, self._late_in_a_row = (block.run_number, int(ids_N[-1])), 0
        nth_N = np.arange(1, len(block) + 1)
        came_with_NK = self._repeated(len(block))
        came_with_NK[:, _IN] += nth_N
        came_with_NK[:, _MISSING] += ids_N - highest - nth_N
        self._count(came_with_NK)
        return Arrival(block=block, came_with_NK=came_with_NK)

    def _admit_any(self, block: FrameBlock, highest: int) -> Arrival:
        """Some ids are not above all before: tell duplicates, late ones and those out of order apart."""
        ids_D = block.pulse_id_N.astype(np.int64)
        highest_D = np.maximum(np.maximum.accumulate(ids_D), highest)
        before_D = np.concatenate([[highest], highest_D[:-1]])
        first_D = np.zeros(len(ids_D), np.bool_)
        first_D[np.unique(ids_D, return_index=True)[1]] = True
        late_D = ids_D <= before_D - WINDOW
        duplicate_D = ~late_D & (~first_D | ((ids_D <= highest) & self._seen[ids_D % WINDOW]))
        fresh_D = ~late_D & ~duplicate_D
        came_with_DK = self._repeated(len(ids_D))
        # A frame that closes a gap takes back what was counted as missing when the stream ran past it.
        steps = {
            "frames_in": np.ones_like(ids_D), "missing": highest_D - before_D - (fresh_D & (ids_D >= self._first)),
            "out_of_order": fresh_D & (ids_D < before_D), "duplicate": duplicate_D, "late": late_D,
        }  # fmt: skip
        for name, steps_D in steps.items():
            came_with_DK[:, CAME_WITH.index(name)] += np.cumsum(steps_D)
        self._remember(block.pulse_id_N[fresh_D], highest, int(highest_D[-1]))
        self._leapt(highest_D - before_D, fresh_D)
        self.last = (block.run_number, int(highest_D[-1]))
        self._late_in_a_row = self._late_in_a_row + len(ids_D) if late_D.all() else 0
        self._count(came_with_DK)
        passed = _told(_pick(block, late_D), LATE) if late_D.any() else ()
        return Arrival(block=_pick(block, fresh_D), came_with_NK=came_with_DK[fresh_D], passed=passed)

    def _repeated(self, frames: int) -> npt.NDArray[np.int64]:
        return np.tile(np.array([self.counts[name] for name in CAME_WITH], np.int64), (frames, 1))

    def _count(self, came_with_DK: npt.NDArray[np.int64]) -> None:
        self.counts = dict(zip(CAME_WITH, came_with_DK[-1].tolist(), strict=True))

    def _is_bad(self, block: FrameBlock) -> bool:
        wrong = block.counts_NCE.shape[1:] != self._frame_shape or block.counts_NCE.dtype != np.uint8
        wrong = wrong or not 0 <= block.run_number <= MAX_RUN or int(block.pulse_id_N.max()) > MAX_ID
        return wrong or bool((block.flags_N & BAD).any())


_IN, _MISSING = CAME_WITH.index("frames_in"), CAME_WITH.index("missing")


def _places(ids: Ids) -> npt.NDArray[np.intp]:
    return (ids % np.uint64(WINDOW)).astype(np.intp)


def _told(block: FrameBlock, reason: str) -> tuple[PulseRange, ...]:
    if not len(block):
        return ()
    told = PulseRange(
        first_pulse_id=int(block.pulse_id_N.min()),
        last_pulse_id=int(block.pulse_id_N.max()),
        frames=len(block),
        reason=reason,
        run_number=block.run_number,
    )
    return (told,)


def _joined(first: Arrival, second: Arrival) -> Arrival:
    one, other = first.block, second.block
    labels = [part.label_NCE for part in (one, other) if part.label_NCE is not None]
    block = FrameBlock(
        run_number=one.run_number,
        pulse_id_N=np.concatenate([one.pulse_id_N, other.pulse_id_N]),
        counts_NCE=np.concatenate([one.counts_NCE, other.counts_NCE]),
        flags_N=np.concatenate([one.flags_N, other.flags_N]),
        label_NCE=np.concatenate(labels) if labels else None,
    )
    came_with_NK = np.concatenate([first.came_with_NK, second.came_with_NK])
    return Arrival(block=block, came_with_NK=came_with_NK, passed=(*first.passed, *second.passed))


def _pick(block: FrameBlock, which_D: npt.NDArray[np.bool_]) -> FrameBlock:
    return FrameBlock(
        run_number=block.run_number,
        pulse_id_N=block.pulse_id_N[which_D],
        counts_NCE=block.counts_NCE[which_D],
        flags_N=block.flags_N[which_D],
        label_NCE=None if block.label_NCE is None else block.label_NCE[which_D],
    )
