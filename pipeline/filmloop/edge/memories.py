"""What the drift monitor knows of each version, on disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from filmloop.core.errors import FilmloopError
from filmloop.core.fsio import disk_errors
from filmloop.core.log import Limited
from filmloop.drift.report import DriftMemory

_log = logging.getLogger(__name__)

_KEEP_MEMORIES = 50


class Keeper:
    """Writes memories in a thread of its own: a disk that hangs then must not keep the frames waiting.

    A memory is read by the thread of the frames, a few dozen kB once at every change of the version; a disk that hangs
    just then does keep them waiting, in the ring.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._next = folder, threading.Condition()
        self._waiting: dict[Path, DriftMemory] = {}
        self._busy = False
        self._thread: threading.Thread | None = None
        self._trouble = Limited(_log)

    def read(self, version: str, digest: str) -> DriftMemory | None:
        """The memory of a version; None if there is none that fits, or it cannot be read, which is logged."""
        path = self._path(version, digest)
        with self._next:
            if path in self._waiting:
                return self._waiting[path]
        try:
            memory = DriftMemory.read(path)
        except FilmloopError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                _log.warning("what is normal for version %s is measured anew: %s %s", version, exc.message, exc.hint)
            return None
        return memory if (memory.version, memory.bundle_digest) == (version, digest) else None

    def keep(self, memory: DriftMemory) -> None:
        """Write it soon; a newer one of the same version takes its place."""
        with self._next:
            self._waiting[self._path(memory.version, memory.bundle_digest)] = memory
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="drift-keeper", daemon=True)
                self._thread.start()
            self._next.notify_all()

    def finish(self, timeout_s: float = 1.0) -> None:
        """Wait until all is written, but not for long."""
        with self._next:
            self._next.wait_for(lambda: not self._waiting and not self._busy, timeout_s)

    def _run(self) -> None:
        while True:
            with self._next:
                self._next.wait_for(lambda: self._waiting)
                path, memory = self._waiting.popitem()
                self._busy = True
            try:
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                memory.write(path)
                self._forget_old()
            except FilmloopError as exc:
                self._trouble.failed("what is normal cannot be remembered: %s %s", exc.message, exc.hint)
            else:
                self._trouble.worked("what is normal is remembered again")
            with self._next:
                self._busy = False
                self._next.notify_all()

    def _forget_old(self) -> None:
        with disk_errors(self._folder):
            found = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in found[_KEEP_MEMORIES:]:
                path.unlink(missing_ok=True)

    def _path(self, version: str, digest: str) -> Path:
        return self._folder / f"{version}-{digest[:12]}.json"
