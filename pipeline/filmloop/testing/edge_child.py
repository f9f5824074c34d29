"""An edge to be ended by force: a scripted stream on a state folder, in a process of its own.

`python -m filmloop.testing.edge_child HOME FRAMES [--tied]` runs until the script is through or a signal comes; tied,
also until its standard input closes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from filmloop.config.paths import Home
from filmloop.core import log
from filmloop.edge.process import run_until_signalled
from filmloop.edge.service import EdgeService
from filmloop.testing.edge import ScriptedSource, small_site

READ_FRAMES = 32
GAP_EVERY = 1000
"""Of so many pulse ids the last is never delivered."""


def script(frames: int) -> list[tuple[int, list[int]]]:
    """Pulse ids from 0 below `frames` without the missing ones, in two runs of the same ids."""
    ids = [pulse_id for pulse_id in range(frames) if pulse_id % GAP_EVERY != GAP_EVERY - 1]
    parts = [ids[start : start + READ_FRAMES] for start in range(0, len(ids), READ_FRAMES)]
    return [(run, part) for run in (1, 2) for part in parts]


def run(home: Path, frames: int, *, tied: bool = False, frames_per_shard: int = 256) -> int:
    """One life of the edge; returns its exit code."""
    log.configure()
    service = EdgeService(
        config=small_site(staging={"frames_per_shard": frames_per_shard}),
        home=Home(home),
        # 32 frames a millisecond: slower than the edge, so that a kill may fall anywhere between two seals.
        source=ScriptedSource(script(frames), pause_s=0.001),
        registry=None,
    )
    return run_until_signalled(service, tied=tied)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), tied="--tied" in sys.argv[3:]))
