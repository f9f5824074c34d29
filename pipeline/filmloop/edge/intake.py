"""What is let in: sound frames of the right shape with rising pulse ids; the rest is counted.

Shape suffixes: N frames let in, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import Accounting
from filmloop.core.types import BAD, FrameBlock
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
        bad_N: Pulse ids of a block refused as damaged, uint64; None for a sound one.
    """

    block: FrameBlock
    before: Accounting
    delivered: int
    place_N: npt.NDArray[np.int64] | None = None
    previous: int | None = None
    bad_N: npt.NDArray[np.uint64] | None = None

    def upto(self, frames: int, *, inferred: bool) -> Accounting:
        """The accounting of everything up to and including the first `frames` frames let in."""
        if frames == 0:
            return self.before
        delivered = frames if self.place_N is None else int(self.place_N[frames - 1])
        part = Accounting(
            frames_in=frames,
            frames_inferred=frames if inferred else 0,
            frames_dropped={} if inferred else {NO_MODEL: frames},
            frames_missing=self._missing(self.block.pulse_id_N[:frames]),
        )
        if delivered > frames:
            part = add(part, lost(delivered - frames, DUPLICATE))
        return add(self.before, part)

    def whole(self, *, inferred: bool) -> Accounting:
        """The accounting of everything up to the end of the block."""
        if self.bad_N is not None:
            bad = len(self.bad_N)
            part = add(lost(bad, BAD_FRAME), lost(self.delivered - bad, DUPLICATE))
            return add(self.before, part.model_copy(update={"frames_missing": self._missing(self.bad_N)}))
        frames = len(self.block)
        counted = 0 if not frames else frames if self.place_N is None else int(self.place_N[-1])
        return add(self.upto(frames, inferred=inferred), lost(self.delivered - counted, DUPLICATE))

    def _missing(self, ids_N: npt.NDArray[np.uint64]) -> int:
        """Pulse ids that were never delivered, up to the last of these."""
        if not len(ids_N):
            return 0
        first = int(ids_N[0]) - 1 if self.previous is None else self.previous
        return int(ids_N[-1]) - first - len(ids_N)


def sound_or_bad(block: FrameBlock) -> Iterator[FrameBlock]:
    """`block` in parts that are either sound as a whole or flagged `BAD` as a whole."""
    bad_N = block.flags_N & BAD != 0
    edges = [0, *(np.flatnonzero(bad_N[1:] != bad_N[:-1]) + 1).tolist(), len(block)] if bad_N.any() else [0, len(block)]
    for start, stop in pairwise(edges):
        yield block[start:stop]


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
        """Check `block`, which follows frames accounted for in `before`; one frame flagged `BAD` spoils it all."""
        previous = self.last[1] if self.last is not None and self.last[0] == block.run_number else None
        ids_N = block.pulse_id_N
        arrival = Arrival(block=block, before=before, delivered=len(block), previous=previous)
        if (previous is not None and int(ids_N[0]) <= previous) or (ids_N[1:] <= ids_N[:-1]).any():
            arrival = _without_duplicates(arrival)
        if len(arrival.block):
            self.last = (block.run_number, int(arrival.block.pulse_id_N[-1]))
        if self._is_bad(block):
            arrival = replace(arrival, block=block[:0], place_N=None, bad_N=arrival.block.pulse_id_N)
        return arrival

    def _is_bad(self, block: FrameBlock) -> bool:
        wrong = block.counts_NCE.shape[1:] != self._frame_shape or block.counts_NCE.dtype != np.uint8
        return wrong or bool((block.flags_N & BAD).any())


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
