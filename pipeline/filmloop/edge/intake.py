"""What is let in: frames of the right shape with rising pulse ids; the rest is counted.

Shape suffixes: N frames let in, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import Accounting
from filmloop.core.types import FrameBlock
from filmloop.edge.tally import BAD_FRAME, DUPLICATE, NO_MODEL, add, lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One block after the door, and how to account for any leading part of it.

    A shard may fill up in the middle of a block; what its manifest says must hold for exactly the frames up to there.

    Attributes:
        block: The frames let in; may be none.
        before: What became of all frames ahead of this block.
        delivered: Frames that the source delivered in this block, let in or not.
        place_N: For each frame let in, how many delivered ones end with it, int64 (N,); None if all were let in.
        previous: Pulse id before the first frame in the same run; None at the begin of a run.
        bad: The whole block was refused as damaged.
    """

    block: FrameBlock
    before: Accounting
    delivered: int
    place_N: npt.NDArray[np.int64] | None = None
    previous: int | None = None
    bad: bool = False

    def upto(self, frames: int, *, inferred: bool) -> Accounting:
        """The accounting of everything up to and including the first `frames` frames let in."""
        if frames == 0:
            return self.before
        delivered = frames if self.place_N is None else int(self.place_N[frames - 1])
        ids_N = self.block.pulse_id_N
        first = int(ids_N[0]) - 1 if self.previous is None else self.previous
        part = Accounting(
            frames_in=frames,
            frames_inferred=frames if inferred else 0,
            frames_dropped={} if inferred else {NO_MODEL: frames},
            frames_missing=int(ids_N[frames - 1]) - first - frames,
        )
        if delivered > frames:
            part = add(part, lost(delivered - frames, DUPLICATE))
        return add(self.before, part)

    def whole(self, *, inferred: bool) -> Accounting:
        """The accounting of everything up to the end of the block."""
        if self.bad:
            return add(self.before, lost(self.delivered, BAD_FRAME))
        frames = len(self.block)
        counted = 0 if not frames else frames if self.place_N is None else int(self.place_N[-1])
        return add(self.upto(frames, inferred=inferred), lost(self.delivered - counted, DUPLICATE))


class Intake:
    """Lets frames in and remembers where the stream stands.

    Args:
        frame_shape: (C, E) that frames must have.
        last: (run number, pulse id) of the last frame of an earlier life; None begins anew.
    """

    def __init__(self, frame_shape: tuple[int, int], last: tuple[int, int] | None) -> None:
        self._frame_shape = frame_shape
        self.last = last

    def admit(self, block: FrameBlock, before: Accounting) -> Arrival:
        """Check `block`, which follows frames accounted for in `before`."""
        previous = self.last[1] if self.last is not None and self.last[0] == block.run_number else None
        ids_N = block.pulse_id_N
        if block.counts_NCE.shape[1:] != self._frame_shape or block.counts_NCE.dtype != np.uint8:
            self._advance(block.run_number, int(ids_N.max()), previous)
            return Arrival(block=block[:0], before=before, delivered=len(block), bad=True)
        arrival = Arrival(block=block, before=before, delivered=len(block), previous=previous)
        if (previous is not None and int(ids_N[0]) <= previous) or (ids_N[1:] <= ids_N[:-1]).any():
            arrival = _without_duplicates(arrival)
        if len(arrival.block):
            self._advance(block.run_number, int(arrival.block.pulse_id_N[-1]), previous)
        return arrival

    def _advance(self, run_number: int, pulse_id: int, previous: int | None) -> None:
        self.last = (run_number, pulse_id if previous is None else max(previous, pulse_id))


def _without_duplicates(arrival: Arrival) -> Arrival:
    """Keep the frames whose pulse id is above all before them."""
    ids_N = arrival.block.pulse_id_N
    highest_N = np.maximum.accumulate(ids_N)
    fresh_N = np.concatenate([[True], ids_N[1:] > highest_N[:-1]])
    if arrival.previous is not None:
        fresh_N &= ids_N > np.uint64(arrival.previous)
    place_N = np.flatnonzero(fresh_N)
    block = arrival.block
    return replace(
        arrival,
        place_N=place_N + 1,
        block=FrameBlock(
            run_number=block.run_number,
            pulse_id_N=ids_N[place_N],
            counts_NCE=block.counts_NCE[place_N],
            flags_N=block.flags_N[place_N],
            label_NCE=None if block.label_NCE is None else block.label_NCE[place_N],
        ),
    )
