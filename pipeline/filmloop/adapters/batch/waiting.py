"""How long a job waits in the queue: since its submission, and anew after each start.

A job that was preempted or lost a node is back in the queue. When it came there nobody writes down, least of all the node
that was lost; that its last start is long ago says how long it ran. So its wait begins when it is first seen there.
"""

from __future__ import annotations

import time
from pathlib import Path

from filmloop.adapters.batch.attempt import Attempt, Back, Started
from filmloop.core.clock import epoch_s, utc_now


def waited_s(folder: Path, attempt: Attempt, started: Started | None) -> float:
    """How long a job that the queue calls waiting has waited. The first sight is a file: it survives a restart.

    Args:
        folder: Its run folder.
        attempt: As it was submitted.
        started: Its latest start, None before the first.

    Raises:
        TransientError: the disk refuses.
    """
    if started is None:
        return time.time() - epoch_s(attempt.submitted_utc)
    back = Back.read(folder)
    waited_s = -1.0
    if back is not None and back.started_utc == started.started_utc:
        waited_s = time.time() - epoch_s(back.seen_utc)
    if waited_s < 0:  # or the clock was set back
        Back(started_utc=started.started_utc, seen_utc=utc_now()).write(folder)
        return 0.0
    return waited_s
