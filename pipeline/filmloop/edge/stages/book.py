"""The books of the staging stage: what became of every frame that it has passed, across all of its lives.

They stand in the ring's staging cell, which outlives a killed stage, and in the manifest of every shard.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import Accounting, PulseRange
from filmloop.edge.news import News
from filmloop.edge.ring import CAME_WITH, NOT_INFERRED, NOTES, UNSTAGED, FrameRing
from filmloop.edge.tally import NO_MODEL, NOT_SAMPLED, PASSED, STAGING_KILLED, STOPPED, add_reasons, merged, note
from filmloop.staging.catalog import last_sealed

_MOST_RANGES = 4096
"""Half a megabyte in a manifest. While a disk is full, damaged frames among the sound ones bring as many in a minute."""


class StagingBook:
    """Counts what is taken from the ring, and keeps the list of what is left out for the next manifest.

    Args:
        ring: Its staging cell says where an earlier life stood.

    Attributes:
        totals: The cell as it is written next.
        run_number: Of the open shard.
    """

    def __init__(self, ring: FrameRing) -> None:
        self.totals = ring.staging.read()
        self.run_number = self.totals["open_run"]
        self._begins = False
        self._ring = ring
        self._came = [ring.source.get(name) for name in CAME_WITH]
        # As of the last frame that the open shard has: what became of all, and how many gaps were before it.
        self._at_last = self._came, self.totals, 0
        self._dropped: list[PulseRange] = []
        self._most_ranges = _MOST_RANGES
        self._noted_at = -1

    @property
    def taken(self) -> int:
        """Cursor of the next frame."""
        return self.totals["taken"]

    def begin_shard(self, run_number: int) -> None:
        """Frames of this run come next, into a new shard."""
        self._begins = run_number != self.totals["open_run"] or not self.totals["open_frames"]
        self.run_number = run_number

    def count(self, places: slice, kept: int, sealed: int) -> None:
        """So many frames of these places are in the open shard, the others were not sampled."""
        ids_N = self._ring.pulse_id_F[places]
        if kept:
            self._say_open(ids_N)
        self.totals["appended"] += kept
        self.totals[NOT_SAMPLED] += len(ids_N) - kept
        self._pass(places, sealed)
        self._take_notes(self.taken - 1)

    def mark_last(self) -> None:
        """What was counted last is in the open shard: its manifest speaks of all up to here."""
        self._at_last = self._came, dict(self.totals), len(self._dropped)

    def leave_out(self, places: slice, reason: str, sealed: int) -> None:
        """Count frames that are not staged; the next manifest names them."""
        ids_N = self._ring.pulse_id_F[places]
        self._take_notes(self.taken)
        left_out = PulseRange(
            first_pulse_id=int(ids_N.min()),
            last_pulse_id=int(ids_N.max()),
            frames=len(ids_N),
            reason=reason,
            run_number=int(self._ring.run_number_F[places.start]),
        )
        self._note(left_out, self.taken)
        self.totals[reason] += len(ids_N)
        self._pass(places, sealed)
        self._noted_at = self.taken

    def commit(self, sealed: int) -> None:
        """Write the cell; `sealed` frames are in sealed shards."""
        self.totals["sealed"] = sealed
        self.totals["open_frames"] = self.totals["appended"] - sealed
        self._ring.staging.write(self.totals)

    def close_shard(self) -> tuple[Accounting, tuple[PulseRange, ...]]:
        """For the manifest: what became of every frame up to the last one of the open shard, and what was left out.

        What was left out since that frame is for the next one: a source that can go back brings it again.
        """
        came_with, totals, before = self._at_last
        dropped, self._dropped = tuple(self._dropped[:before]), self._dropped[before:]
        self._at_last = came_with, totals, 0
        came = dict(zip(CAME_WITH, came_with, strict=True))
        passed = {reason: came[reason] for reason in PASSED}
        accounting = Accounting(
            frames_in=came["frames_in"],
            frames_inferred=totals["inferred"],
            frames_dropped=add_reasons(passed, {NO_MODEL: totals["no_model"], STOPPED: totals["not_inferred"]}),
            frames_unstaged=add_reasons(passed, {reason: totals[reason] for reason in UNSTAGED}),
            frames_missing=came["missing"],
            frames_out_of_order=came["out_of_order"],
        )
        return accounting, dropped

    def find_lost(self, stage: Path, stream: str, news: News) -> int:
        """Count the frames of shards that a killed life had open; returns how many frames sealed shards hold.

        The cell is written before a shard is given away, so the disk never holds a frame that the cell has not passed.
        """
        last = last_sealed(stage, stream)
        sealed = 0 if last is None else last.manifest.accounting.frames_staged
        totals = self.totals
        lost = totals["appended"] - sealed
        told = 0 if last is None else last.manifest.accounting.frames_unstaged.get(STAGING_KILLED, 0)
        # A life that was killed before it sealed anything could not tell of what the one before it had lost.
        untold = totals[STAGING_KILLED] - told
        if lost + untold > 0:
            first_id, last_id = totals["open_first_id"], totals["open_last_id"]
            if last is not None and last.manifest.run_number == totals["open_run"]:
                first_id = min(last.manifest.last_pulse_id + 1, last_id)
            killed = PulseRange(
                first_pulse_id=first_id, last_pulse_id=last_id, frames=lost + untold, reason=STAGING_KILLED,
                run_number=totals["open_run"],
            )  # fmt: skip
            self._dropped.append(killed)
        if lost > 0:
            news.problem(f"{lost} frames of the open shard were lost when staging was ended by force")
            totals[STAGING_KILLED] += lost
        totals["appended"] = sealed
        return sealed

    def give_up(self, frames: int, reason: str, sealed: int) -> None:
        """The disk did not take these frames of closed shards: the last word."""
        self.totals[reason] += frames
        self.totals["appended"] -= frames
        self.totals["ended"] = 1
        self.commit(sealed)

    def _say_open(self, ids_N: npt.NDArray[np.uint64]) -> None:
        """The open shard has frames of these now; before its first ones a kill costs frames of the shards before it."""
        if self._begins:
            self.totals["open_run"], self.totals["open_first_id"] = self.run_number, int(ids_N[0])
            self._begins = False
        self.totals["open_last_id"] = int(ids_N[-1])

    def _take_notes(self, upto: int) -> None:
        """What the source let pass before the frame at cursor `upto`."""
        told = self._ring.source.get("notes")
        first = max(self.totals["notes"], told - NOTES)
        for number in range(first, told):
            at, passed = self._ring.read_note(number)
            if at > upto:
                break
            self._note(passed, at)
            first = number + 1
        self.totals["notes"] = first

    def _note(self, left_out: PulseRange, at: int) -> None:
        """Add to the next manifest's list; what is left out in a row for one reason is one entry."""
        if at == self._noted_at:
            note(self._dropped, left_out)
        else:
            self._dropped.append(left_out)
        self._noted_at = at
        if len(self._dropped) > self._most_ranges:
            self._merge()

    def _merge(self) -> None:
        """Tell less exactly of what was left out; what was before the last frame of the open shard stays apart."""
        came_with, totals, before = self._at_last
        told, untold = merged(self._dropped[:before]), merged(self._dropped[before:])
        self._at_last, self._dropped = (came_with, totals, len(told)), told + untold
        # However many runs there are, most calls of `_note` find room.
        self._most_ranges = max(_MOST_RANGES, 2 * len(self._dropped))

    def _pass(self, places: slice, sealed: int) -> None:
        """These places are free again. Told before the shard that holds the frames is given away: see `find_lost`."""
        version_N = self._ring.version_F[places]
        no_model = int(np.count_nonzero(version_N == 0))
        stopped = int(np.count_nonzero(version_N == NOT_INFERRED))
        self.totals["no_model"] += no_model
        self.totals["not_inferred"] += stopped
        self.totals["inferred"] += len(version_N) - no_model - stopped
        self.totals["taken"] += len(version_N)
        self._came = self._ring.came_with_FK[places.stop - 1].tolist()
        self.commit(sealed)
        self._ring.bells["source"].ring()
