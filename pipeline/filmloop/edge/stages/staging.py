"""The third stage: takes inferred frames from the ring into the open shard, and counts those that it leaves out.

It never touches the disk: full shards go to the sealer. Which frames are left out is a written policy: those that the
site does not sample; those of a live source while more wait than `shed_at` of the ring; those for which there is no
shard because the disk refuses.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting
from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock
from filmloop.drift.beam import beam_off_told
from filmloop.drift.gain import gain_told
from filmloop.edge.control import pending_requests
from filmloop.edge.ring import NOT_INFERRED, FrameRing
from filmloop.edge.stages.base import Stage
from filmloop.edge.stages.book import StagingBook
from filmloop.edge.stages.sealer import Closed, Sealer
from filmloop.edge.tally import (
    BAD_FRAME,
    QUEUE_FULL,
    STOPPED,
)
from filmloop.staging.layout import next_seq
from filmloop.staging.recovery import recover
from filmloop.staging.sampling import Sampler
from filmloop.staging.writer import ShardWriter, storable

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_PENDING_SHARDS = 2
"""Closed shards that may wait for the disk; each is some 50 MB at 131,072 frames of 16x128."""
_MOST_PACKERS = 8
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
        self._book = StagingBook(ring)
        self._sampler = Sampler(section) if section.keep_every > 1 else None
        self._allowed = int(config.edge.shed_at * ring.frames)
        recover(home.stage, stream)
        sealed = self._book.find_lost(home.stage, stream, self.news)
        self._seq = next_seq(home.stage, stream)
        self._writer: ShardWriter | None = None
        threads = section.threads or min(_MOST_PACKERS, len(os.sched_getaffinity(0)) // 2)
        self._packers = ThreadPoolExecutor(threads, "packer") if threads > 1 else None
        self._closing: set[Path] = set()
        self._asked: dict[Path, int] = {}
        self._looked_s, self._beam_off = 0.0, False
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
            if done == self._book.taken and ended:
                break
            self._shed(done)
            if not self._step(done, flush=bool(ended)):
                self.wait(_LOOK_EVERY_S)
            self.beat()
        self._end()

    def _step(self, done: int, *, flush: bool) -> bool:
        """Take the next frames from the ring; False if there is nothing to do but wait."""
        taken, ring = self._book.taken, self.ring
        if taken == done:
            return False
        there = ring.span(taken, done)
        places = self._of_one_run(there)
        if places == there and not flush and not self._worth_it(places):
            return False
        left_N = self.ring.version_F[places] == NOT_INFERRED
        if self.hurried or left_N[0]:
            self._leave_out(places if self.hurried else slice(places.start, places.start + _leading(left_N)), STOPPED)
            return True
        if left_N[-1]:
            places = slice(places.start, places.start + int(left_N.argmax()))
        writer = self._open(int(ring.run_number_F[places.start]))
        if writer is not None:
            self._take(writer, places)
            return True
        if self._sealer.trouble:
            self._leave_out(places, self._sealer.trouble)
        return bool(self._sealer.trouble)

    def _worth_it(self, places: slice) -> bool:
        """A chunk is packed where it lies if all of it is there: worth waiting for, but not for long, nor until frames are shed."""
        chunk = self._config.staging.frames_per_chunk
        filled = 0 if self._writer is None else self._writer.frames % chunk
        enough = min(chunk - filled, self._allowed // 2)
        if places.stop - places.start >= enough or places.stop == self.ring.frames or self._asked:
            return True
        waited_ns = time.monotonic_ns() - int(self.ring.arrived_ns_F[places.start])
        return waited_ns > 2e9 * _LOOK_EVERY_S

    def _open(self, run_number: int) -> ShardWriter | None:
        """The shard for frames of this run; None while the one before cannot be given away."""
        if self._writer is not None and (self._writer.full or run_number != self._book.run_number):
            if self._writer.frames and not self._close():
                return None
            self._writer = None
        if self._writer is None:
            self._book.begin_shard(run_number)
            self._writer = ShardWriter(
                self._home.stage,
                site=self._config.site,
                stream=self._stream,
                run_number=run_number,
                seq=self._seq,
                frame_shape=self._config.frame_shape,
                labelled=self.ring.label_FCE is not None,
                section=self._config.staging,
                pack_all=map if self._packers is None else self._packers.map,
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
            self._put(writer, places)
        except DataError as exc:
            self.news.problem(exc.message)
            self._put_sound(writer, places)
        if writer.full:
            self._close()

    def _put_sound(self, writer: ShardWriter, places: slice) -> None:
        """Of frames that no shard takes together those that one does; looked at singly only now: it costs as much again."""
        label_FCE, at = self.ring.label_FCE, places.start
        sound_N = np.ones(places.stop - at, np.bool_) if label_FCE is None else storable(label_FCE[places])
        while at < places.stop:
            left_N = sound_N[at - places.start :]
            alike = slice(at, at + _leading(left_N == left_N[0]))
            try:
                self._put(writer, alike)
            except DataError:
                self._leave_out(alike, BAD_FRAME)
            at = alike.stop
            self.beat()

    def _put(self, writer: ShardWriter, places: slice) -> None:
        """All of these frames, or the sample of them, for which there is room; the writer says why if it takes none."""
        kept, end = self._append(writer, places)
        if kept:
            self._book.count(slice(places.start, end), kept, self._sealer.sealed)
            self._book.mark_last()
        if end < places.stop:
            self._book.count(slice(end, places.stop), 0, self._sealer.sealed)

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
            run_number=self._book.run_number,
            pulse_id_N=ring.pulse_id_F[which],
            counts_NCE=ring.counts_FCE[which],
            flags_N=ring.flags_F[which],
            label_NCE=None if ring.label_FCE is None else ring.label_FCE[which],
        )
        version_N, phase_N = ring.version_F[which], ring.phase_F[which]
        kept_frames = writer.append(block, version_N=version_N, phase_N=phase_N, weight_N=weight_N)
        if self._beam_off:
            writer.frames_dark += kept_frames
        return kept_frames, end

    def _leave_out(self, places: slice, reason: str) -> None:
        self._book.leave_out(places, reason, self._sealer.sealed)

    def _shed(self, done: int) -> None:
        """Of a live source, leave out the oldest frames while more wait than the site allows."""
        if not self._live or done - self._book.taken <= self._allowed:
            return
        self.news.problem("staging cannot keep up: frames are inferred and not staged")
        end = done - self._allowed // 2
        while (taken := self._book.taken) < end:
            self._leave_out(self._of_one_run(self.ring.span(taken, end)), QUEUE_FULL)

    def _of_one_run(self, places: slice) -> slice:
        """The first of these places, up to where another run begins."""
        runs_N = self.ring.run_number_F[places]
        return slice(places.start, places.start + _leading(runs_N == runs_N[0]))

    def _close(self, requests: tuple[Path, ...] = (), *, at_the_end: bool = False) -> bool:
        """Give the open shard to the sealer, if there is one; False if that has enough to do."""
        writer = self._writer
        if writer is None or not writer.frames:
            self._sealer.put(Closed(writer=None, accounting=Accounting(), requests=requests))
            return True
        if self._sealer.waiting >= _PENDING_SHARDS and not at_the_end:
            return False
        accounting, dropped = self._book.close_shard()
        writer.input_gain = gain_told(self.ring.boards[self.ring.serving].read())
        self._sealer.put(Closed(writer=writer, accounting=accounting, dropped=dropped, requests=requests))
        self._writer = None
        return True

    def _look(self) -> None:
        """A few times a second: is the open shard due, does somebody ask for a seal?"""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        self._beam_off = beam_off_told(self.ring.boards[self.ring.serving].read())
        if self._book.totals["sealed"] != self._sealer.sealed:
            self._book.commit(self._sealer.sealed)
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
        due = (path for path, upto in self._asked.items() if upto <= self._book.taken)
        new = tuple(path for path in due if path not in self._closing)
        if new and self._close(new):
            self._closing.update(new)

    def _end(self) -> None:
        """Seal for the last time; what the disk does not take is counted."""
        end_s = time.monotonic() + _END_S
        self._close(at_the_end=True)
        self._sealer.end()
        while self._sealer.is_alive() and time.monotonic() < (end_s := self._at_most(end_s)):
            self._sealer.join(_LOOK_EVERY_S)
            self.beat()
        frames, reason = self._sealer.give_up()
        if self._sealer.failure is not None:
            raise self._sealer.failure
        self._book.give_up(frames, reason, self._sealer.sealed)

    def _at_most(self, end_s: float) -> float:
        return min(end_s, time.monotonic() + _HURRY_S) if self.hurried else end_s


def _leading(true_N: npt.NDArray[np.bool_]) -> int:
    """How many of the first ones are true."""
    return len(true_N) if true_N.all() else int(true_N.argmin())
