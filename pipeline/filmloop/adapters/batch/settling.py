"""Waits for the files of a job that the queue calls ended: its word may be here sooner than they are.

An NFS client remembers that a name was not there for as long as it trusts its picture of the folder, up to `acdirmax`:
60 s by default (nfs(5), "Directory entry caching"). The queue says COMPLETED within a second. So silent files are
no verdict yet: the client is made to look again, and what is still silent after the settling time has nothing to say.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from filmloop.adapters.batch.attempt import OVER, Over
from filmloop.adapters.local.runfolder import BUNDLE_RESULT, Exit
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.fsio import disk_errors


def has_spoken(folder: Path) -> bool:
    """Whether the files say how the job ended: an exit code, and after exit code 0 a bundle."""
    ended = Exit.read(folder)
    return ended is not None and (ended.exit_code != 0 or (folder / BUNDLE_RESULT).is_file())


def look_again(folder: Path) -> None:
    """Make a file and remove it: the client asks the server for a folder that it has changed itself.

    Raises:
        TransientError: the disk refuses.
    """
    with disk_errors(folder):
        fd, name = tempfile.mkstemp(prefix=".look-", dir=folder)
        os.close(fd)
        os.unlink(name)


def has_settled(folder: Path, batch_id: str, settle_s: float) -> bool:
    """Whether the job was first seen ended `settle_s` ago. The first sight is a file: it survives a restart.

    Raises:
        TransientError: the disk refuses.
    """
    over = Over.read(folder)
    waited_s = time.time() - epoch_s(over.seen_utc) if over is not None and over.batch_id == batch_id else -1.0
    if waited_s < 0:  # or the clock was set back
        Over(batch_id=batch_id, seen_utc=utc_now()).write(folder)
        waited_s = 0.0
    return waited_s >= settle_s


def is_back(folder: Path) -> None:
    """The job is in the queue: an end that was seen before is none."""
    over = folder / OVER
    if over.exists():
        with disk_errors(over):
            over.unlink(missing_ok=True)
