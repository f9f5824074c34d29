"""A move by copying from folder to folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from filmloop.adapters.moving.deliver import INCOMING, below, deliver, is_delivered, make_dirs
from filmloop.adapters.moving.journal import MoveRequest
from filmloop.adapters.moving.thread import MoveThread
from filmloop.core.fsio import fsync_dir


class MoveWorker(MoveThread):
    """Copies file by file, each verified, in the order of the items."""

    def __init__(self, folder: Path, request: MoveRequest, roots: tuple[Path, Path], deadline_s: float) -> None:
        super().__init__(folder, request, deadline_s)
        self._source_root, self._target_root = roots
        self._incoming = self._target_root / INCOMING / request.key

    def move(self) -> None:
        """See `MoveThread.move`."""
        self.keep_on()
        make_dirs(self._incoming)
        unsynced: Path | None = None
        for number, wire in enumerate(self.request.items):
            self.keep_on()
            item = wire.as_item()
            target = below(self._target_root, item.target_path)
            # In the order of the items, power cut or not: a manifest that is listed last appears last.
            if unsynced is not None and unsynced != target.parent:
                fsync_dir(unsynced)
            if not is_delivered(item, target):
                source = below(self._source_root, item.source_path)
                deliver(item, source, target, self._incoming / str(number), keep_on=self.keep_on)
            unsynced = target.parent
            self.files_done += 1
            self.bytes_done += item.size_bytes
        if unsynced is not None:
            fsync_dir(unsynced)

    def tidy(self, *, succeeded: bool) -> None:
        """Remove half copies: they give their space back."""
        shutil.rmtree(self._incoming, ignore_errors=True)
