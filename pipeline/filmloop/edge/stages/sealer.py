"""Seals shards beside the frames: a thread, so that the disk never holds up the stage that takes frames from the ring.

A disk that refuses never stops the edge. A shard that cannot be sealed stays in memory and is tried again.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.log import Limited
from filmloop.core.pagecache import WrittenFiles
from filmloop.edge.news import News
from filmloop.edge.tally import DISK_ERROR, DISK_FULL, STOPPED, add
from filmloop.staging.catalog import last_sealed
from filmloop.staging.retention import expire
from filmloop.staging.writer import ShardWriter

_log = logging.getLogger(__name__)

_RETRY_FIRST_S, _RETRY_CAP_S = 0.25, 5.0
# Retention lists the whole stream: pointless after each of several seals a second.
_EXPIRE_EVERY_S = 10.0
_CACHED_BYTES = 512_000_000
"""Of the newest shards, left in the kernel's memory: a mover or a trainer on this machine reads them next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A shard that takes no more frames.

    Attributes:
        writer: Its frames; None only answers requests.
        accounting: What became of every frame up to its last one; frames that shards hold are the sealer's to add.
        dropped: Frames that would be in it, and why they are not.
        requests: Files to remove once it and all before it are sealed.
    """

    writer: ShardWriter | None
    accounting: Accounting
    dropped: tuple[PulseRange, ...] = ()
    requests: tuple[Path, ...] = ()


class Sealer(threading.Thread):
    """Seals closed shards in order.

    Args:
        stage: Folder of all shards.
        stream: Name of the stream.
        section: How many shards to keep.
        sealed: Frames in sealed shards of earlier lives.
        may_expire: Says whether a sealed shard may be deleted once there are too many.
        news: Where problems are told.

    Attributes:
        sealed: Frames in sealed shards, of all lives.
        trouble: Why the disk refuses, or ''.
        failure: What ended the thread before its time; a bug, as the disk's refusals do not.
        answered: Requests whose files are gone; the stage takes them out.
    """

    def __init__(
        self,
        *,
        stage: Path,
        stream: str,
        section: StagingSection,
        sealed: int,
        may_expire: Callable[[str], bool],
        news: News,
    ) -> None:
        super().__init__(name="sealer", daemon=True)
        self.sealed, self.trouble = sealed, ""
        self.failure: Exception | None = None
        self.answered: deque[Path] = deque()
        self._stage, self._stream, self._section = stage, stream, section
        self._may_expire, self._news = may_expire, news
        self._closed: deque[Closed] = deque()
        self._change = threading.Condition()
        self._given_up, self._ending = Accounting(), False
        self._expired_at_s = -_EXPIRE_EVERY_S
        self._trouble, self._cap_trouble = Limited(_log), Limited(_log)
        self._capped = 0
        self._written = WrittenFiles(_CACHED_BYTES)

    @property
    def waiting(self) -> int:
        """Shards that are not sealed yet."""
        return sum(closed.writer is not None for closed in tuple(self._closed))

    def put(self, closed: Closed) -> None:
        """Take over a shard; it is sealed behind those that were given before."""
        with self._change:
            self._closed.append(closed)
            self._change.notify()

    def end(self) -> None:
        """Try at once what was put off, then end when nothing is left; `join` waits for that."""
        with self._change:
            self._ending = True
            self._change.notify()

    def give_up(self) -> tuple[int, str]:
        """Forget the shards that are not sealed; says how many frames those were, and why."""
        with self._change:
            frames = sum(closed.writer.frames for closed in self._closed if closed.writer is not None)
            self._closed.clear()
            self._change.notify()
        reason = self.trouble or STOPPED
        if frames:
            _log.error("%d frames of unsealed shards could not be staged: %s", frames, reason)
        return frames, reason

    def run(self) -> None:
        """The thread: until `end`."""
        try:
            while (closed := self._next()) is not None:
                self._deal_with(closed)
        except Exception as exc:
            _log.exception("staging ended")
            self.failure = exc

    def _next(self) -> Closed | None:
        with self._change:
            while not self._closed:
                if self._ending:
                    return None
                self._change.wait()
            return self._closed[0]

    def _deal_with(self, closed: Closed) -> None:
        """Seal one shard, however often it takes; its turn ends when it is sealed or given up."""
        pause_s, ending = _RETRY_FIRST_S, self._ending
        while self._is_first(closed):
            if closed.writer is None or self._seal(closed.writer, closed):
                self._done(closed)
                return
            was_ending, ending = ending, self._rest(pause_s, ending)
            pause_s = _RETRY_FIRST_S if ending != was_ending else min(pause_s * 2, _RETRY_CAP_S)

    def _rest(self, pause_s: float, ending: bool) -> bool:
        """Until the next try, which comes at once when the end begins; says whether it has begun."""

        def is_over() -> bool:
            return not self._closed or self._ending != ending

        with self._change:
            self._change.wait_for(is_over, pause_s)
            return self._ending

    def _is_first(self, closed: Closed) -> bool:
        with self._change:
            return bool(self._closed) and self._closed[0] is closed

    def _seal(self, writer: ShardWriter, closed: Closed) -> bool:
        frames = writer.frames
        try:
            accounting = add(closed.accounting, Accounting(frames_staged=self.sealed + frames))
            shard = writer.seal(accounting=accounting, dropped=closed.dropped)
        except (TransientError, DataError) as exc:
            if not self._is_committed(writer):
                self._refused(exc)
                return False
        else:
            folder = shard.manifest_path.parent
            self._written.add((folder / file.path, file.size_bytes) for file in shard.manifest.files)
        self.sealed += frames
        self.trouble = ""
        self._trouble.worked("staging works again")
        return True

    def _is_committed(self, writer: ShardWriter) -> bool:
        """Whether a seal that failed had already renamed the manifest: then the frames are staged."""
        try:
            last = last_sealed(self._stage, self._stream)
        except FilmloopError:
            # The next try is refused if it was, and asks again.
            return False
        return last is not None and last.shard_id == writer.shard_id

    def _done(self, closed: Closed) -> None:
        with self._change:
            if self._closed and self._closed[0] is closed:
                self._closed.popleft()
        for request in closed.requests:
            try:
                request.unlink(missing_ok=True)
            except OSError as exc:
                self._news.problem(f"{request} was answered and cannot be removed: {exc}")
            else:
                self.answered.append(request)
        if closed.writer is not None:
            self._expire()

    def _refused(self, exc: FilmloopError) -> None:
        cause = exc.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        self.trouble = DISK_FULL if full else DISK_ERROR
        self._news.problem(exc.message)
        self._trouble.failed("a shard cannot be sealed, the edge goes on: %s %s", exc.message, exc.hint)

    def _expire(self) -> None:
        now_s = time.monotonic()
        if now_s - self._expired_at_s < _EXPIRE_EVERY_S:
            return
        self._expired_at_s = now_s
        self._expire_trained()
        self._expire_untrained()

    def _expire_trained(self) -> None:
        try:
            expire(self._stage, self._stream, self._section.keep_shards, self._may_expire)
        except Exception as exc:
            # `may_expire` asks the ledger, a database of another process: whatever ails it, staging goes on.
            self._news.problem(f"old shards were not removed: {exc}")

    def _expire_untrained(self) -> None:
        """Cycles that fail for days must not fill the disk: what `may_expire` refused goes too, beyond `max_shards`."""
        most = self._section.max_shards
        try:
            gone = expire(self._stage, self._stream, most, lambda _: True)
        except (FilmloopError, OSError) as exc:
            self._news.problem(f"old shards were not removed: {exc}")
            return
        if gone:
            self._capped += len(gone)
            self._news.problem(f"{self._capped} shards were removed untrained: more than max_shards = {most}")
            self._cap_trouble.failed(
                "%d shards up to %s were removed though no cycle has trained on them (%d since the start): there were "
                "more than staging.max_shards = %d. `filmloop status` shows the last cycle.",
                len(gone),
                gone[-1],
                self._capped,
                most,
            )
