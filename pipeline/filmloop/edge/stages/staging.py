"""The third stage: takes inferred frames from the ring into the open shard, and counts those that it leaves out.

It never touches the disk: full shards go to the sealer. Which frames are left out is a written policy: those that the
site does not sample; those of a live source while more wait than `shed_at` of the ring; those for which there is no
shard because the disk refuses.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock
from filmloop.edge.control import pending_requests
from filmloop.edge.ring import CAME_WITH, NOT_INFERRED, NOTES, UNSTAGED, FrameRing
from filmloop.edge.stages.base import Stage
from filmloop.edge.stages.sealer import Closed, Sealer
from filmloop.edge.tally import (
    BAD_FRAME,
    NO_MODEL,
    NOT_SAMPLED,
    PASSED,
    QUEUE_FULL,
    STAGING_KILLED,
    STOPPED,
    add_reasons,
    note,
)
from filmloop.staging.catalog import last_sealed
from filmloop.staging.layout import next_seq
from filmloop.staging.recovery import recover
from filmloop.staging.sampling import Sampler
from filmloop.staging.writer import ShardWriter

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_PENDING_SHARDS = 2
"""Closed shards that may wait for the disk; each is some 50 MB at 131,072 frames of 16x128."""
_END_S, _HURRY_S = 60.0, 1.0


class StagingStage(Stage):
    """Fills shards.

    Args:
        ring: The ring; its staging cell says where an earlier life stood.
        config: The site.
        home: Its state folder.
        stream: Name of the stream.
        live: The source does not wait, so staging must not make it.
        may_expire: Says whether a sealed shard may be deleted once there are too many.
    """

    def __init__(
        self,
        ring: FrameRing,
        config: SiteConfig,
        *,
        home: Home,
        stream: str,
        live: bool,
        may_expire: Callable[[str], bool],
    ) -> None:
        super().__init__("staging", ring)
        self._config, self._home, self._stream, self._live = config, home, stream, live
        section = config.staging
        self._totals = ring.staging.read()
        self._came = [ring.source.get(name) for name in CAME_WITH]
        # As of the last frame that the open shard has: what became of all, and how many gaps were before it.
        self._at_last = self._came, self._totals, 0
        self._sampler = Sampler(section) if section.keep_every > 1 else None
        self._dropped: list[PulseRange] = []
        self._noted_at = -1
        sealed = self._find_lost()
        self._seq = next_seq(home.stage, stream)
        self._writer: ShardWriter | None = None
        self._closing: set[Path] = set()
        self._asked: dict[Path, int] = {}
        self._looked_s = 0.0
        self._sealer = Sealer(
            stage=home.stage,
            stream=stream,
            section=section,
            sealed=sealed,
            may_expire=may_expire,
            news=self.news,
        )

    def run(self) -> None:
        """Work until inference has ended and all its frames are staged or counted."""
        self._sealer.start()
        while self._sealer.failure is None:
            self._look()
            # In this order: once inference has ended, `done` is its last word.
            ended, done = self.ring.inference.get("ended"), self.ring.inference.get("done")
            if done == self._totals["taken"] and ended:
                break
            self._shed(done)
            if not self._step(done, flush=bool(ended)):
                self.wait(_LOOK_EVERY_S)
            self.beat()
        self._end()

    def _step(self, done: int, *, flush: bool) -> bool:
        """Take the next frames from the ring; False if there is nothing to do but wait."""
        taken, ring = self._totals["taken"], self.ring
        if taken == done:
            return False
        places = ring.span(taken, done)
        runs_N = ring.run_number_F[places]
        new_run_N = runs_N != runs_N[0]
        if new_run_N.any():
            places = slice(places.start, places.start + int(new_run_N.argmax()))
        elif not flush and not self._worth_it(places):
            return False
        left_N = self.ring.version_F[places] == NOT_INFERRED
        if self.hurried or left_N[0]:
            self._leave_out(places if self.hurried else slice(places.start, places.start + _leading(left_N)), STOPPED)
            return True
        if left_N[-1]:
            places = slice(places.start, places.start + int(left_N.argmax()))
        writer = self._open(int(runs_N[0]))
        if writer is not None:
            self._take(writer, places)
            return True
        if self._sealer.trouble:
            self._leave_out(places, self._sealer.trouble)
        return bool(self._sealer.trouble)

    def _worth_it(self, places: slice) -> bool:
        """A chunk is packed where it lies if all of it is there: worth waiting for, but not for long."""
        chunk = self._config.staging.frames_per_chunk
        filled = 0 if self._writer is None else self._writer.frames % chunk
        if places.stop - places.start >= chunk - filled or places.stop == self.ring.frames or self._asked:
            return True
        waited_ns = time.monotonic_ns() - int(self.ring.arrived_ns_F[places.start])
        return waited_ns > 2e9 * _LOOK_EVERY_S

    def _open(self, run_number: int) -> ShardWriter | None:
        """The shard for frames of this run; None while the one before cannot be given away."""
        if self._writer is not None and (self._writer.full or run_number != self._totals["open_run"]):
            if self._writer.frames and not self._close():
                return None
            self._writer = None
        if self._writer is None:
            if run_number != self._totals["open_run"] or not self._totals["open_frames"]:
                self._totals["open_first_id"] = -1
            self._totals["open_run"] = run_number
            self._writer = ShardWriter(
                self._home.stage,
                site=self._config.site,
                stream=self._stream,
                run_number=run_number,
                seq=self._seq,
                frame_shape=self._config.frame_shape,
                labelled=self.ring.label_FCE is not None,
                section=self._config.staging,
            )
            self._seq += 1
        return self._writer

    def _take(self, writer: ShardWriter, places: slice) -> None:
        """Frames of one run into the open shard, as many as fit."""
        section = self._config.staging
        frames = min(places.stop - places.start, section.frames_per_shard - writer.frames)
        # Up to the end of a chunk, so that the next one begins with an empty buffer and is packed without a copy.
        head = section.frames_per_chunk - writer.frames % section.frames_per_chunk
        if frames > head:
            frames = head + (frames - head) // section.frames_per_chunk * section.frames_per_chunk
        places = slice(places.start, places.start + frames)
        try:
            kept, end = self._append(writer, places)
        except DataError as exc:
            self.news.problem(exc.message)
            self._leave_out(places, BAD_FRAME)
            return
        if kept:
            self._count(slice(places.start, end), kept)
            self._at_last = self._came, dict(self._totals), len(self._dropped)
        if end < places.stop:
            self._count(slice(end, places.stop), 0)
        if writer.full:
            self._close()

    def _count(self, places: slice, kept: int) -> None:
        ids_N = self.ring.pulse_id_F[places]
        if self._totals["open_first_id"] < 0:
            self._totals["open_first_id"] = int(ids_N[0])
        self._totals["open_last_id"] = int(ids_N[-1])
        self._totals["appended"] += kept
        self._totals[NOT_SAMPLED] += len(ids_N) - kept
        self._pass(places)
        self._take_notes(self._totals["taken"] - 1)

    def _append(self, writer: ShardWriter, places: slice) -> tuple[int, int]:
        """All of the frames, or the sample of them; returns how many, and the place behind the last of these."""
        ring = self.ring
        which: slice | npt.NDArray[np.intp] = places
        weight_N, end = None, places.stop
        if self._sampler is not None:
            keep_N, weight_N = self._sampler.choose(ring.pulse_id_F[places], ring.surprise_F[places])
            kept = places.start + np.flatnonzero(keep_N)
            if not len(kept):
                return 0, places.start
            which, weight_N, end = kept, weight_N[keep_N], int(kept[-1]) + 1
        block = FrameBlock(
            run_number=self._totals["open_run"],
            pulse_id_N=ring.pulse_id_F[which],
            counts_NCE=ring.counts_FCE[which],
            flags_N=ring.flags_F[which],
            label_NCE=None if ring.label_FCE is None else ring.label_FCE[which],
        )
        version_N, phase_N = ring.version_F[which], ring.phase_F[which]
        return writer.append(block, version_N=version_N, phase_N=phase_N, weight_N=weight_N), end

    def _leave_out(self, places: slice, reason: str) -> None:
        """Count frames that are not staged; the next manifest names them."""
        ids_N = self.ring.pulse_id_F[places]
        self._take_notes(self._totals["taken"])
        left_out = PulseRange(
            first_pulse_id=int(ids_N.min()),
            last_pulse_id=int(ids_N.max()),
            frames=len(ids_N),
            reason=reason,
            run_number=int(self.ring.run_number_F[places.start]),
        )
        self._note(left_out, self._totals["taken"])
        self._totals[reason] += len(ids_N)
        self._pass(places)
        self._noted_at = self._totals["taken"]

    def _shed(self, done: int) -> None:
        """Of a live source, leave out the oldest frames while more wait than the site allows."""
        allowed = int(self._config.edge.shed_at * self.ring.frames)
        if not self._live or done - self._totals["taken"] <= allowed:
            return
        self.news.problem("staging cannot keep up: frames are inferred and not staged")
        end = done - allowed // 2
        while (taken := self._totals["taken"]) < end:
            places = self.ring.span(taken, end)
            runs_N = self.ring.run_number_F[places]
            new_run_N = runs_N != runs_N[0]
            if new_run_N.any():
                places = slice(places.start, places.start + int(new_run_N.argmax()))
            self._leave_out(places, QUEUE_FULL)

    def _take_notes(self, upto: int) -> None:
        """What the source let pass before the frame at cursor `upto`."""
        told = self.ring.source.get("notes")
        first = max(self._totals["notes"], told - NOTES)
        for number in range(first, told):
            at, passed = self.ring.read_note(number)
            if at > upto:
                break
            self._note(passed, at)
            first = number + 1
        self._totals["notes"] = first

    def _note(self, left_out: PulseRange, at: int) -> None:
        """Add to the next manifest's list; what is left out in a row for one reason is one entry."""
        if at == self._noted_at:
            note(self._dropped, left_out)
        else:
            self._dropped.append(left_out)
        self._noted_at = at

    def _pass(self, places: slice) -> None:
        """These places are free again. Told before the shard that holds the frames is given away: see `_find_lost`."""
        version_N = self.ring.version_F[places]
        no_model = int(np.count_nonzero(version_N == 0))
        stopped = int(np.count_nonzero(version_N == NOT_INFERRED))
        self._totals["no_model"] += no_model
        self._totals["not_inferred"] += stopped
        self._totals["inferred"] += len(version_N) - no_model - stopped
        self._totals["taken"] += len(version_N)
        self._came = self.ring.came_with_FK[places.stop - 1].tolist()
        self._commit()
        self.ring.bells["source"].ring()

    def _commit(self) -> None:
        self._totals["sealed"] = self._sealer.sealed
        self._totals["open_frames"] = self._totals["appended"] - self._totals["sealed"]
        self.ring.staging.write(self._totals)

    def _close(self, requests: tuple[Path, ...] = (), *, at_the_end: bool = False) -> bool:
        """Give the open shard to the sealer, if there is one; False if that has enough to do."""
        writer = self._writer
        if writer is None or not writer.frames:
            self._sealer.put(Closed(writer=None, accounting=Accounting(), requests=requests))
            return True
        if self._sealer.waiting >= _PENDING_SHARDS and not at_the_end:
            return False
        # What was left out since its last frame is for the next one: a source that can go back brings it again.
        before = self._at_last[2]
        dropped, self._dropped = tuple(self._dropped[:before]), self._dropped[before:]
        writer.input_gain = gain_told(self.ring.boards["inference"].read())
        self._sealer.put(Closed(writer=writer, accounting=self._accounting(), dropped=dropped, requests=requests))
        self._writer = None
        return True

    def _accounting(self) -> Accounting:
        """What became of every frame up to the last one of the open shard, but for those that shards hold."""
        came_with, totals, _ = self._at_last
        came = dict(zip(CAME_WITH, came_with, strict=True))
        passed = {reason: came[reason] for reason in PASSED}
        return Accounting(
            frames_in=came["frames_in"],
            frames_inferred=totals["inferred"],
            frames_dropped=add_reasons(passed, {NO_MODEL: totals["no_model"], STOPPED: totals["not_inferred"]}),
            frames_unstaged=add_reasons(passed, {reason: totals[reason] for reason in UNSTAGED}),
            frames_missing=came["missing"],
            frames_out_of_order=came["out_of_order"],
        )

    def _look(self) -> None:
        """A few times a second: is the open shard due, does somebody ask for a seal?"""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if self._totals["sealed"] != self._sealer.sealed:
            self._commit()
        if self._writer is not None and self._writer.age_s >= self._config.staging.seal_after_s:
            self._close()
        self._answer()

    def _answer(self) -> None:
        """A request is answered when all frames that had come in before it are in sealed shards."""
        while self._sealer.answered:
            # By the same name somebody may ask again.
            path = self._sealer.answered.popleft()
            self._closing.discard(path)
            self._asked.pop(path, None)
        try:
            found = pending_requests(self._home)
        except OSError as exc:
            self.news.problem(f"seal requests cannot be read: {exc}")
            return
        head = self.ring.source.get("head")
        self._asked = {path: self._asked.get(path, head) for path in found}
        due = (path for path, upto in self._asked.items() if upto <= self._totals["taken"])
        new = tuple(path for path in due if path not in self._closing)
        if new and self._close(new):
            self._closing.update(new)

    def _find_lost(self) -> int:
        """Clean up after a crash; returns how many frames sealed shards hold, and counts those of the open ones.

        The cell is written before a shard is given away, so the disk never holds a frame that the cell has not passed.
        """
        recover(self._home.stage, self._stream)
        last = last_sealed(self._home.stage, self._stream)
        sealed = 0 if last is None else last.manifest.accounting.frames_staged
        totals = self._totals
        lost = totals["appended"] - sealed
        told = 0 if last is None else last.manifest.accounting.frames_unstaged.get(STAGING_KILLED, 0)
        # A life that was killed before it sealed anything could not tell of what the one before it had lost.
        untold = totals[STAGING_KILLED] - told
        if lost > 0 or untold > 0:
            first_id, last_id = totals["open_first_id"], totals["open_last_id"]
            if last is not None and last.manifest.run_number == totals["open_run"]:
                first_id = min(last.manifest.last_pulse_id + 1, last_id)
            killed = PulseRange(
                first_pulse_id=first_id, last_pulse_id=last_id, frames=lost + untold, reason=STAGING_KILLED,
                run_number=totals["open_run"],
            )  # fmt: skip
            self._dropped.append(killed)
        if lost > 0:
            self.news.problem(f"{lost} frames of the open shard were lost when staging was ended by force")
            totals[STAGING_KILLED] += lost
        totals["appended"] = sealed
        return sealed

    def _end(self) -> None:
        """Seal for the last time; what the disk does not take is counted."""
        end_s = time.monotonic() + _END_S
        self._close(at_the_end=True)
        self._sealer.end()
        while self._sealer.is_alive() and time.monotonic() < (end_s := self._at_most(end_s)):
            self._sealer.join(_LOOK_EVERY_S)
            self.beat()
        frames, reason = self._sealer.give_up()
        self._totals[reason] += frames
        self._totals["appended"] -= frames
        if self._sealer.failure is not None:
            raise self._sealer.failure
        self._totals["ended"] = 1
        self._commit()

    def _at_most(self, end_s: float) -> float:
        return min(end_s, time.monotonic() + _HURRY_S) if self.hurried else end_s


def gain_told(board: Mapping[str, Any]) -> tuple[float, ...]:
    """The gains that the inference stage says it corrects, 0 for dead channels; empty if it does not."""
    told = (board.get("drift") or {}).get("gain")
    if not told:
        return ()
    return tuple(0.0 if channel in told["dead"] else gain for channel, gain in enumerate(told["gain_C"]))


def _leading(true_N: npt.NDArray[np.bool_]) -> int:
    """How many of the first ones are true."""
    return len(true_N) if true_N.all() else int(true_N.argmin())
