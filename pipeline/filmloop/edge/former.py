"""The window of pulse ids that was left because nothing but late frames came.

Either the numbering has begun anew: then the former window says nothing about what comes. Or a sender that lags brings
what it had queued while the others pause: then they go on where they were, and nothing that came there is missing.
The second shows when frames come that lie in the former window and were not seen there; until then all that is let in
had been counted as missing, when the others ran past it.
Shape suffixes: N frames let in, D frames delivered, W places of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A window as it was left.

    Attributes:
        highest: Its highest pulse id.
        first: The first pulse id of its numbering; those below were never missing.
        seen_W: bool (W,), which ids came; the place of an id is its remainder.
        missing: What was counted as missing by then.
        gaps: How much of that belongs to this run: more cannot come late.
        came: Frames let in since, which had been missing if this was no new numbering.
    """

    highest: int
    first: int
    seen_W: npt.NDArray[np.bool_]
    missing: int
    gaps: int
    came: int = 0

    def entered_at(self, ids_D: Ids) -> int | None:
        """Where in a block the frames go on in this window; None if they do not, or one of them was seen in it."""
        below = max(self.highest - len(self.seen_W), -1)
        inside_D = ids_D.astype(np.int64) > below
        if not inside_D.any():
            return None
        known = ids_D[inside_D & (ids_D <= np.uint64(self.highest))]
        if self.seen_W[(known % np.uint64(len(self.seen_W))).astype(np.intp)].any():
            return None
        return int(inside_D.argmax())

    def after(self, ids_N: Ids, highest: int) -> Former | None:
        """The same after frames were let in elsewhere, up to `highest`; None once they show a new numbering."""
        came = self.came + int(np.count_nonzero(ids_N.astype(np.int64) >= self.first))
        if came > self.gaps or highest > self.highest - len(self.seen_W):
            return None
        return replace(self, came=came)
