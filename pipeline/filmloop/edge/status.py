"""What the edge says about itself, about twice a second, in one small file that anybody may read."""

from __future__ import annotations

import json
import os
from typing import Literal

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting, Document
from filmloop.core.errors import DataError
from filmloop.edge.lock import is_alive as is_alive


class Quality(Document):
    """How well the live weights predict the held-out part of thinned frames, over the newest sampled frames."""

    version: str
    frames: int
    nll: float
    """Mean Poisson NLL, nats a frame, without the log b! term; lower is better."""
    nll_constant: float
    """The same for a predictor that knows the running mean frame alone: the scale that `nll` is read against."""
    hits_per_frame: float
    """Mean counts of the sampled frames."""


State = Literal["starting", "running", "drained", "stopped"]
"""`drained`: the data have ended, and the edge was told to stay."""


class EdgeStatus(Accounting):
    """The state of one edge. Says "running" for ever after a kill: ask `is_alive` too."""

    schema_version: Literal[1] = 1
    pid: int
    state: State
    started_utc: str
    updated_utc: str
    site: str
    stream: str
    frames_open: int = 0
    """Frames in the open shard: not yet in `frames_staged`."""
    queue_blocks: int = 0
    """Batches that wait for staging."""
    rate_hz: float = 0.0
    """Frames in, over the last few seconds."""
    latency_p50_ms: float = 0.0
    """From a batch's arrival to its result; over the newest batches."""
    latency_p99_ms: float = 0.0
    runtime: str = ""
    version: str = ""
    version_since_utc: str = ""
    swaps: int = 0
    swaps_refused: int = 0
    quality: Quality | None = None
    last_problem: str = ""
    last_problem_utc: str = ""


def write_status(home: Home, status: EdgeStatus) -> None:
    """Replace the status file in one step. Not durable: after a crash of the machine it means nothing.

    Raises:
        OSError: the disk refuses.
    """
    home.edge_status.parent.mkdir(parents=True, exist_ok=True)
    part = home.edge_status.with_name(f"status.json.{os.getpid()}.part")
    part.write_text(json.dumps(status.as_json(), indent=2) + "\n", encoding="utf-8")
    os.replace(part, home.edge_status)


def read_status(home: Home) -> EdgeStatus | None:
    """The newest status, of a living or a dead edge; None if there never was one or its file is not readable."""
    try:
        return EdgeStatus.read(home.edge_status)
    except DataError:
        return None
