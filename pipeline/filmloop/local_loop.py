"""One cycle with everything around it: the registry up, an edge running, enough frames, then `run_cycle`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress

from filmloop.adapters.arriving import ArrivingRegistry
from filmloop.bootstrap import (
    Site,
    Tell,
    Wanted,
    cycle_parts,
    load_registry_client,
    open_ledger,
    open_registry,
    refuse_unready,
    registry_is_new,
    registry_is_starting,
    warm_worker,
)
from filmloop.config.sources import PvAccessSource, ZeroMqSource
from filmloop.core.clock import epoch_s
from filmloop.core.documents import CycleReport
from filmloop.core.errors import ConfigError, FilmloopError, TransientError
from filmloop.core.fsio import atomic_write_json
from filmloop.cycle import run_cycle
from filmloop.drift.policy import why_not
from filmloop.drift.report import DriftReport
from filmloop.edge.spawn import EdgeProcess
from filmloop.edge.status import EdgeStatus, is_alive, read_status
from filmloop.launching import chosen_model
from filmloop.ledger import Ledger
from filmloop.ports.registry import CHAMPION, Registry
from filmloop.selection import frames_of, is_fresh, usable_shards
from filmloop.training.choice import check_choice
from filmloop.zoo.scorer import Scorer

_FRAMES_DEADLINE_S = 120.0
_LOOK_S = 0.05
_GIVE_UP_S, _END_SERVER_S = 1.0, 20.0
"""A registry that is coming up notices within a tenth of the first that the cycle has failed. On a machine that is busy its
end takes longer, and is waited for: what was left would come up with half its tables, if at all."""


def retrain_once(
    site: Site, *, again: bool = False, force: bool = False, with_edge: bool = True, tell: Tell
) -> CycleReport:
    """Run one cycle. `with_edge` starts an edge for its duration unless one is running.

    Nothing is begun if the site's drift policy says that no cycle is needed, unless `force` or `again`.

    Raises:
        FilmloopError: see `filmloop.cycle.run_cycle`.
    """
    refuse_unready(site)
    # The cycle asks this, too: here nothing has been started for it, and no frame was waited for.
    check_choice(chosen_model(site.config, site.config.frame_shape))
    with open_ledger(site) as ledger, ledger.cycle_lock() as free:
        if not free:
            return CycleReport(outcome="busy", message="Another cycle is running; this one did nothing.")
        needless = "" if again or force or ledger.open_cycle() is not None else no_need(site, ledger)
        if needless:
            return CycleReport(outcome="nothing_to_do", message=needless)
        begun_s = time.monotonic()
        worker = warm_worker(site)
        warm = None if worker is None else worker.start_module
        scorer = Scorer(site.home.recall, deadline_s=site.config.zoo.deadline_s, warm=warm)
        with scorer, edge_for(site, wanted=with_edge, tell=tell) as edge:
            if edge is None and site.config.zoo.recall != "off" and ledger.open_cycle() is None:
                scorer.load()  # beside the registry's client; an edge that starts needs the cores itself
            setup_s = time.monotonic() - begun_s
            is_new = registry_is_new(site)
            with _beside(lambda wanted: _registry_and_worker(site, tell, wanted)) as opening:
                registry = ArrivingRegistry(site.config.registered_model, opening, is_new=is_new)
                if with_edge and ledger.open_cycle() is None:
                    wait_for_frames(site, ledger, edge=edge, again=again, tell=tell)
                frames_s = time.monotonic() - begun_s - setup_s
                report = run_cycle(cycle_parts(site, ledger, registry), again=again, scorer=scorer, tell=tell)
    steps = {"setup": round(setup_s, 3), "frames": round(frames_s, 3), **report.steps}
    # Waiting for the detector is no overhead; starting the edge is, and whatever a step waits for the registry.
    overhead_s = None if report.overhead_s is None else round(report.overhead_s + setup_s, 3)
    return report.model_copy(update={"steps": steps, "overhead_s": overhead_s})


@contextmanager
def _beside(work: Callable[[Wanted], Registry]) -> Iterator[Future[Registry]]:
    """What `work` returns, at work in a thread of its own for the block; a block that fails soon goes on without it.

    `work` may ask whether it is wanted still. The thread is a daemon: what it loads cannot be interrupted, and holds up no
    Ctrl-C.
    """
    found: Future[Registry] = Future()
    failed = threading.Event()

    def run() -> None:
        try:
            found.set_result(work(lambda: not failed.is_set()))
        except BaseException as exc:
            found.set_exception(exc)

    threading.Thread(target=run, name="registry-opener", daemon=True).start()
    try:
        yield found
        # Not for the thread: after a Ctrl-C in its `join` Python 3.11 takes it for ended, and so would the wait below.
        wait([found])
    except BaseException:
        failed.set()
        wait([found], _GIVE_UP_S)
        end_s = time.monotonic() + _END_SERVER_S
        while not found.done() and registry_is_starting() and time.monotonic() < end_s:
            wait([found], _LOOK_S)
        raise


def _registry_and_worker(site: Site, tell: Tell, wanted: Wanted) -> Registry:
    """What the cycle needs later, started while frames arrive and are read: seconds that nobody waits for.

    The client takes another second or two to load, beside the server's start.
    """
    beside = [threading.Thread(target=do, args=(site,), daemon=True) for do in (_load_client, _start_worker)]
    for thread in beside:
        thread.start()
    registry = open_registry(site, start=True, tell=tell, wanted=wanted)
    for thread in beside:
        thread.join()
    with suppress(FilmloopError):  # the cycle asks again
        registry.get(CHAMPION)
    return registry


def _load_client(site: Site) -> None:
    with suppress(Exception):  # whoever asks the registry loads it again, and says what is wrong
        load_registry_client(site)


def _start_worker(site: Site) -> None:
    worker = warm_worker(site)
    if worker is not None:
        with suppress(FilmloopError):  # the launcher then starts cold, and says why
            worker.start()


def no_need(site: Site, ledger: Ledger) -> str:
    """Why the site's drift policy wants no cycle now; '' if it wants one."""
    if site.config.drift.policy == "always":
        return ""
    trained = [row for row in ledger.history(100) if row.outcome in ("promoted", "refused", "undecided")]
    ago_s = time.time() - epoch_s(trained[0].finished_utc) if trained else None
    if ago_s is not None and ago_s < 0:
        ago_s = None  # the clock was set back: nobody knows
    return why_not(site.config.drift, drift_seen(site), trained_s_ago=ago_s)


def drift_seen(site: Site) -> DriftReport | None:
    """What the running edge says of drift; None if none runs on this site's stream, or it says nothing yet."""
    status = read_status(site.home) if is_alive(site.home) else None
    return None if status is None or status.stream != site.stream else status.drift


@contextmanager
def edge_for(site: Site, *, wanted: bool, tell: Tell) -> Iterator[EdgeProcess | None]:
    """An edge for the block: one of our own, that ends with this process however it ends; or None and the one that runs.

    Raises:
        ConfigError: an edge runs, on another stream.
    """
    if not wanted or is_alive(site.home):
        status = read_status(site.home)
        if wanted and status is not None and status.stream != site.stream:
            raise ConfigError(
                f"The running edge (pid {status.pid}) watches stream {status.stream!r}, not {site.stream!r}.",
                hint=f"End it with `kill {status.pid}` first, or give this run its own FILMLOOP_HOME.",
            )
        yield None
        return
    tell("edge", f"starting an edge on stream {site.stream!r} for this cycle")
    # The child gets the resolved configuration, --source and --set included, as a site file of its own.
    frozen = site.home.edge / "site.json"
    atomic_write_json(frozen, site.config.model_copy(update={"home": str(site.home.root)}).as_json())
    argv = [sys.executable, "-m", "filmloop.cli", "edge", "run", "--site", str(frozen), "--stay", "--tied"]
    edge = EdgeProcess.start(argv, site.home, site.home.edge / "edge.log")
    try:
        yield edge
    finally:
        tell("edge", "stopping the edge")
        edge.stop()


def wait_for_frames(site: Site, ledger: Ledger, *, edge: EdgeProcess | None, again: bool, tell: Tell) -> None:
    """Wait until a cycle has enough frames, or the source has ended, or there is no beam.

    Raises:
        FilmloopError: our own edge ended: what it said.
        TransientError: two minutes passed and the frames did not come.
    """
    wanted, end_s = site.config.training.min_frames, time.monotonic() + _FRAMES_DEADLINE_S
    while True:
        if edge is not None:
            edge.raise_if_ended()
        elif not is_alive(site.home):
            return
        status = read_status(site.home)
        have = fresh_frames(site, ledger, again=again) + (status.frames_open if status else 0)
        if have >= wanted or (status is not None and _brings_no_more(status)):
            return
        if time.monotonic() > end_s:
            trouble = status.last_problem if status and status.last_problem else "no problem reported"
            raise TransientError(
                f"Only {have:,} of {wanted:,} frames came in {_FRAMES_DEADLINE_S:.0f} s; the edge says: {trouble}.",
                hint=f"{_ask_sender(site)}`filmloop status` shows the edge; `filmloop site check` tests the source.",
            )
        tell("frames", _progress(site, have, wanted, end_s - time.monotonic()))
        time.sleep(0.2)


def _progress(site: Site, have: int, wanted: int, left_s: float) -> str:
    """How many frames there are, and of a source that others send to, how long they are waited for."""
    text, source = f"{have:,} of {wanted:,} fresh frames", site.config.source
    if not isinstance(source, ZeroMqSource | PvAccessSource):
        return text
    waits = "" if have else f", waiting for {source.sender}"
    return f"{text}{waits}; gives up in {max(left_s, 0.0):.0f} s"


def _ask_sender(site: Site) -> str:
    source = site.config.source
    return f"Is there {source.sender}? " if isinstance(source, ZeroMqSource | PvAccessSource) else ""


def _brings_no_more(status: EdgeStatus) -> bool:
    """Whether waiting is in vain: the data are at their end, or there is no beam."""
    return status.state == "drained" or (status.drift is not None and status.drift.beam_off)


def fresh_frames(site: Site, ledger: Ledger, *, again: bool = False) -> int:
    """Frames that a cycle could train on now."""
    states = ledger.shard_states()
    shards = usable_shards(site.home.stage, site.stream, site.config, states)
    return frames_of([shard for shard in shards if again or is_fresh(shard, states)])
