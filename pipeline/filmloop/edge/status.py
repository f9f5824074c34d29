"""What the edge says about itself, about twice a second, in one small file that anybody may read."""

from __future__ import annotations

import json
import os
from typing import Literal

from pydantic import Field

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting, Document
from filmloop.core.errors import DataError
from filmloop.drift.report import DriftReport
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


class InputStatistics(Document):
    """What the sampled frames look like, a running mean over about `quality_window_frames` of them."""

    hits_per_channel: tuple[float, ...]
    """Mean counts a frame; their level is the gain times the intensity."""
    centre_per_channel: tuple[float, ...]
    """Mean energy of the counts, in bins; -1 where there are none."""
    dead_channels: tuple[int, ...] = ()
    """Channels with next to no counts."""


class SourceTrouble(Document):
    """What a live source has had trouble with since it was opened; see `filmloop.ports.source.SourceProblems`."""

    malformed_messages: int = 0
    refused_frames: int = 0
    bad_frames: int = 0
    missed_updates: int = 0
    disconnects: int = 0
    silent_s: float = 0.0
    last_problem: str = ""
    alarms: tuple[str, ...] = ()


class Choice(Document):
    """Which runtime serves the live version, and why."""

    name: str
    batch_frames: int
    """Most frames that are inferred together: more would take over half the latency budget."""
    reason: str
    frames_per_s: dict[str, float]
    """Measured rate of every candidate that is exact enough."""
    relative_rms: dict[str, float]
    """Their relative RMS difference from the golden pair."""
    dropped: dict[str, str]
    """Why the others are no candidates."""


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
    """Frames in shards that are not sealed: not yet in `frames_staged`."""
    frames_waiting: int = 0
    """Frames in the ring: they wait for inference or for staging."""
    rate_hz: float = 0.0
    """Frames in, over the last few seconds."""
    latency_p50_ms: float = 0.0
    """From the arrival of a batch's oldest frame to its result; over the newest batches."""
    latency_p99_ms: float = 0.0
    latency_p999_ms: float = 0.0
    latency_counts: dict[str, int] = Field(default_factory=dict)
    """Batches of this life of the inference stage, of both its seats, by the time they took: bucket of `filmloop.edge.latency`, batches."""
    runtime: str = ""
    version: str = ""
    version_since_utc: str = ""
    swaps: int = 0
    swaps_refused: int = 0
    choice: Choice | None = None
    quality: Quality | None = None
    input: InputStatistics | None = None
    drift: DriftReport | None = None
    source: SourceTrouble | None = None
    stages: dict[str, int] = Field(default_factory=dict)
    """Process id of each stage that has a process of its own, by what it does: `inference` serves, `standby` will."""
    restarts: dict[str, int] = Field(default_factory=dict)
    """How often each stage had to be started anew in this life of the edge."""
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
