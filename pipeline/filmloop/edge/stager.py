"""The stage after inference: a thread that fills shards from a bounded queue, seals them and counts what it could not.

A disk that refuses never stops the edge. The open shard stays in memory and is sealed when the disk lets it; once it is
full, the frames that follow are counted as unstaged until then.
Shape suffixes: N frames.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.log import Limited
from filmloop.core.types import FrameBlock
from filmloop.edge.gauges import Gauges
from filmloop.edge.intake import Arrival
from filmloop.edge.tally import BAD_FRAME, DISK_ERROR, DISK_FULL, STOPPED, add, note, unstaged
from filmloop.staging.catalog import last_sealed
from filmloop.staging.layout import next_seq
from filmloop.staging.retention import expire
from filmloop.staging.writer import ShardWriter

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_RETRY_FIRST_S, _RETRY_CAP_S = 0.25, 5.0
# Retention lists the whole stream: pointless after each of several seals a second.
_EXPIRE_EVERY_S = 10.0
# A stop that is overdue may take this much longer to seal what is open.
_HURRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames on their way to a shard.

    Attributes:
        arrival: The frames, and how to account for any leading part of them.
        version: Registry version that inferred them; 0 is none.
        phase_N: float32 (N,), their sort key; NaN is none.
        dropped: Frames of the same run that were left out right before these.
    """

    arrival: Arrival
    version: int
    phase_N: npt.NDArray[np.float32]
    dropped: tuple[PulseRange, ...] = ()


class Stager(threading.Thread):
    """Owns the open shard.

    Args:
        config: The site.
        home: Its state folder.
        stream: Name of the stream.
        labelled: Whether blocks bring labels.
        staged: Frames in sealed shards of earlier lives.
        may_expire: Says whether a sealed shard may be deleted once there are too many.
        gauges: Where problems and counts are told.

    Attributes:
        failure: What ended the thread before its time; a bug, as the disk's refusals do not.
    """

    def __init__(
        self,
        *,
        config: SiteConfig,
        home: Home,
        stream: str,
        labelled: bool,
        staged: int,
        may_expire: Callable[[str], bool],
        gauges: Gauges,
    ) -> None:
        super().__init__(name="stager", daemon=True)
        self.failure: Exception | None = None
        self._config, self._stage, self._stream, self._labelled = config, home.stage, stream, labelled
        self._may_expire, self._gauges = may_expire, gauges
        self._queue: queue.Queue[Batch | Path | Literal["end"]] = queue.Queue(config.edge.queue_blocks)
        self._seq = next_seq(home.stage, stream)
        self._writer: ShardWriter | None = None
        self._run_number = 0
        self._kept = Accounting(frames_staged=staged)
        self._at_last = Accounting()
        self._dropped: list[PulseRange] = []
        self._dropped_after: list[PulseRange] = []
        self._pause_s, self._retry_at_s, self._reason = 0.0, 0.0, DISK_ERROR
        self._expired_at_s = -_EXPIRE_EVERY_S
        self._hurry = threading.Event()
        self._trouble, self._cap_trouble = Limited(_log), Limited(_log)
        self._capped = 0

    @property
    def kept(self) -> Accounting:
        """Frames staged, and frames that staging itself had to give up."""
        return self._kept

    @property
    def waiting(self) -> int:
        """Entries in the queue."""
        return self._queue.qsize()

    def put(self, entry: Batch | Path | Literal["end"], *, wait_s: float = 0.0) -> bool:
        """Hand over a batch, or the path of a seal request; False if the queue stayed full for `wait_s` seconds."""
        try:
            self._queue.put(entry, block=wait_s > 0, timeout=wait_s or None)
        except queue.Full:
            return False
        return True

    def finish(self, stop: threading.Event, deadline_s: float) -> bool:
        """Stage what is in the queue, seal the open shard and end; False if the disk did not answer in time.

        Once `stop` is set that takes `deadline_s` seconds at most: what then still waits is counted, not staged.
        """
        told, end_s = False, float("inf")
        while self.is_alive():
            now_s = time.monotonic()
            if stop.is_set():
                end_s = min(end_s, now_s + deadline_s)
            if now_s >= end_s:
                self._hurry.set()
            if now_s >= end_s + _HURRY_S:
                return False
            if told:
                self.join(_POLL_S / 2)
            else:
                told = self.put("end", wait_s=_POLL_S / 2)
        return True

    def run(self) -> None:
        """The thread: until `finish`."""
        try:
            while (entry := self._next()) != "end":
                if isinstance(entry, Batch):
                    self._stage_batch(entry)
                elif isinstance(entry, Path):
                    self._answer(entry)
                if self._writer is not None and self._is_due(self._writer):
                    self._seal()
            self._end()
        except Exception as exc:
            _log.exception("staging ended")
            self.failure = exc

    def _next(self) -> Batch | Path | Literal["end"] | None:
        try:
            return self._queue.get(timeout=_POLL_S)
        except queue.Empty:
            return None

    def _is_due(self, writer: ShardWriter) -> bool:
        if self._retry_at_s:
            return time.monotonic() >= self._retry_at_s
        return writer.age_s >= self._config.staging.seal_after_s

    def _stage_batch(self, batch: Batch) -> None:
        block = batch.arrival.block
        if self._hurry.is_set():
            self._kept = add(self._kept, unstaged(len(block), STOPPED))
            return
        if self._writer is not None and block.run_number != self._run_number:
            self._seal()
        version_N = np.full(len(block), batch.version, np.uint32)
        for dropped in batch.dropped:
            self._leave_out(dropped, block.run_number)
        done = 0
        while done < len(block):
            writer = self._room(block.run_number)
            if writer is None:
                self._give_up(block[done:], self._reason)
                return
            try:
                done += writer.append(block[done:], version_N=version_N[done:], phase_N=batch.phase_N[done:])
            except DataError as exc:
                self._gauges.problem(exc.message)
                self._give_up(block[done:], BAD_FRAME)
                return
            self._at_last = add(batch.arrival.upto(done, inferred=batch.version > 0), self._kept)
            self._gauges.frames_open = writer.frames
            if writer.full:
                self._seal()

    def _room(self, run_number: int) -> ShardWriter | None:
        """A shard with room for a frame of this run; None while the disk keeps the last one from being sealed."""
        writer = self._writer
        if writer is not None and (writer.full or run_number != self._run_number):
            return None
        if writer is None:
            self._run_number = run_number
            self._writer = writer = ShardWriter(
                self._stage,
                site=self._config.site,
                stream=self._stream,
                run_number=run_number,
                seq=self._seq,
                frame_shape=self._config.frame_shape,
                labelled=self._labelled,
                section=self._config.staging,
            )
            self._seq += 1
        return writer

    def _give_up(self, block: FrameBlock, reason: str) -> None:
        ids_N = block.pulse_id_N
        self._kept = add(self._kept, unstaged(len(block), reason))
        left_out = PulseRange(
            first_pulse_id=int(ids_N[0]), last_pulse_id=int(ids_N[-1]), frames=len(block), reason=reason
        )
        self._leave_out(left_out, block.run_number)

    def _leave_out(self, left_out: PulseRange, run_number: int) -> None:
        # A shard that has its last frame and waits for the disk: what is lost meanwhile belongs to the next one.
        if self._writer is not None and (self._writer.full or run_number != self._run_number):
            note(self._dropped_after, left_out)
        else:
            self._dropped.append(left_out)

    def _seal(self) -> bool:
        """Seal the open shard, if there is one; False if the disk refuses, now or a moment ago."""
        writer = self._writer
        if writer is None:
            return True
        if self._retry_at_s and time.monotonic() < self._retry_at_s:
            return False
        frames = writer.frames
        try:
            writer.seal(accounting=add(self._at_last, Accounting(frames_staged=frames)), dropped=self._dropped)
        except (TransientError, DataError) as exc:
            if not self._is_committed(writer):
                self._refused(exc)
                return False
        self._sealed(frames)
        return True

    def _is_committed(self, writer: ShardWriter) -> bool:
        """Whether a seal that failed had already renamed the manifest: then the frames are staged."""
        last = last_sealed(self._stage, self._stream)
        return last is not None and last.shard_id == writer.shard_id

    def _sealed(self, frames: int) -> None:
        self._kept = add(self._kept, Accounting(frames_staged=frames))
        self._writer, self._gauges.frames_open = None, 0
        self._dropped, self._dropped_after = self._dropped_after, []
        self._pause_s = self._retry_at_s = 0.0
        self._trouble.worked("staging works again")
        self._expire()

    def _refused(self, exc: FilmloopError) -> None:
        cause = exc.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        self._reason = DISK_FULL if full else DISK_ERROR
        self._pause_s = min(max(self._pause_s * 2, _RETRY_FIRST_S), _RETRY_CAP_S)
        self._retry_at_s = time.monotonic() + self._pause_s
        self._gauges.problem(exc.message)
        self._trouble.failed("the open shard cannot be sealed, the edge goes on: %s %s", exc.message, exc.hint)

    def _answer(self, request: Path) -> None:
        """Seal because somebody asked; the request stays if the disk refuses, and is found again."""
        if self._seal():
            request.unlink(missing_ok=True)
        self._gauges.answered(request)

    def _expire(self) -> None:
        now_s = time.monotonic()
        if now_s - self._expired_at_s < _EXPIRE_EVERY_S:
            return
        self._expired_at_s = now_s
        self._expire_trained()
        self._expire_untrained()

    def _expire_trained(self) -> None:
        try:
            expire(self._stage, self._stream, self._config.staging.keep_shards, self._may_expire)
        except Exception as exc:
            # `may_expire` asks the ledger, a database of another process: whatever ails it, staging goes on.
            self._gauges.problem(f"old shards were not removed: {exc}")

    def _expire_untrained(self) -> None:
        """Cycles that fail for days must not fill the disk: what `may_expire` refused goes too, beyond `max_shards`."""
        most = self._config.staging.max_shards
        try:
            gone = expire(self._stage, self._stream, most, lambda _: True)
        except (FilmloopError, OSError) as exc:
            self._gauges.problem(f"old shards were not removed: {exc}")
            return
        if gone:
            self._capped += len(gone)
            self._gauges.problem(f"{self._capped} shards were removed untrained: more than max_shards = {most}")
            self._cap_trouble.failed(
                "%d shards up to %s were removed though no cycle has trained on them (%d since the start): there were "
                "more than staging.max_shards = %d. `filmloop status` shows the last cycle.",
                len(gone),
                gone[-1],
                self._capped,
                most,
            )

    def _end(self) -> None:
        """Seal for the last time; what the disk does not take is counted."""
        self._retry_at_s = 0.0
        writer = self._writer
        if writer is None or self._seal():
            return
        self._kept = add(self._kept, unstaged(writer.frames, self._reason))
        _log.error("%d frames of the open shard could not be staged: %s", writer.frames, self._reason)
        writer.abort()
        self._gauges.frames_open = 0
