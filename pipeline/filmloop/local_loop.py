"""One cycle with everything around it: the registry up, an edge running, enough frames, then `run_cycle`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filmloop.bootstrap import Site, Tell, cycle_parts, open_ledger, open_registry
from filmloop.core.documents import CycleReport
from filmloop.core.errors import ConfigError
from filmloop.core.fsio import atomic_write_json
from filmloop.cycle import run_cycle
from filmloop.edge.spawn import EdgeProcess
from filmloop.edge.status import EdgeStatus, is_alive, read_status
from filmloop.ledger import TRAINED, Ledger
from filmloop.staging.catalog import sealed_shards

_log = logging.getLogger(__name__)
_FRAMES_DEADLINE_S = 120.0


def retrain_once(site: Site, *, again: bool = False, with_edge: bool = True, tell: Tell) -> CycleReport:
    """Run one cycle. `with_edge` starts an edge for its duration unless one is running.

    Raises:
        FilmloopError: see `filmloop.cycle.run_cycle`.
    """
    begun_s = time.monotonic()
    with open_ledger(site) as ledger:
        with ledger.cycle_lock() as free:
            if not free:
                return CycleReport(outcome="busy", message="Another cycle is running; this one did nothing.")
        with edge_for(site, wanted=with_edge, tell=tell):
            registry = open_registry(site, start=True, tell=tell)
            setup_s = time.monotonic() - begun_s
            if with_edge and ledger.open_cycle() is None:
                wait_for_frames(site, ledger, again=again, tell=tell)
            report = run_cycle(cycle_parts(site, ledger, registry), again=again, tell=tell)
    steps = {"setup": round(setup_s, 3), **report.steps}
    overhead_s = None if report.overhead_s is None else round(report.overhead_s + setup_s, 3)
    return report.model_copy(update={"steps": steps, "overhead_s": overhead_s})


@contextmanager
def edge_for(site: Site, *, wanted: bool, tell: Tell) -> Iterator[None]:
    """An edge for the block: the one that runs already, or one of our own that is stopped at the end.

    Raises:
        ConfigError: an edge runs, on another stream.
    """
    if not wanted or is_alive(site.home):
        status = read_status(site.home)
        if wanted and status is not None and status.stream != site.stream:
            raise ConfigError(
                f"The running edge (pid {status.pid}) watches stream {status.stream!r}, not {site.stream!r}.",
                hint="Stop it first, or give this run its own FILMLOOP_HOME.",
            )
        yield
        return
    tell("edge", f"starting an edge on stream {site.stream!r} for this cycle")
    # The child gets the resolved configuration, --source and --set included, as a site file of its own.
    frozen = site.home.edge / "site.json"
    config = site.config.model_copy(update={"home": str(site.home.root)})
    atomic_write_json(frozen, config.as_json())
    argv = [sys.executable, "-m", "filmloop.cli", "edge", "run", "--site", str(frozen), "--stay"]
    edge = EdgeProcess.start(argv, site.home, site.home.edge / "edge.log")
    try:
        yield
    finally:
        tell("edge", "stopping the edge")
        edge.stop()


def wait_for_frames(site: Site, ledger: Ledger, *, again: bool, tell: Tell) -> None:
    """Wait until a cycle has enough frames, the source has ended, or two minutes have passed."""
    wanted, end_s = site.config.training.min_frames, time.monotonic() + _FRAMES_DEADLINE_S
    while time.monotonic() < end_s and is_alive(site.home):
        status = read_status(site.home)
        have = fresh_frames(site, ledger, again=again) + (status.frames_open if status else 0)
        if have >= wanted or (status is not None and source_ended(status)):
            return
        tell("frames", f"{have:,} of {wanted:,} fresh frames")
        time.sleep(0.1)


def fresh_frames(site: Site, ledger: Ledger, *, again: bool = False) -> int:
    """Frames in sealed shards of this stream that no cycle has trained on."""
    states = ledger.shard_states()
    shards = [shard.manifest for shard in sealed_shards(site.home.stage, site.stream)]
    return sum(s.frames for s in shards if again or states.get(s.shard_id) != TRAINED)


def source_ended(status: EdgeStatus) -> bool:
    """Whether the edge has seen the end of its data."""
    return status.state == "drained"
