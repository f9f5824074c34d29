"""One stage of the edge in a process of its own: `python -m filmloop.edge_stage PLACE RING`, started by the edge service.

What it does stands on the ring's own page: site file, resolved configuration and state folder.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filmloop.bootstrap import Site, open_ledger, open_registry, open_source
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core import log
from filmloop.core.errors import FilmloopError
from filmloop.edge.hosts import STOP_SIGNALS, take_over
from filmloop.edge.news import News
from filmloop.edge.ring import SEATS
from filmloop.edge.stages.base import Stage
from filmloop.edge.stages.source import SourceStage

if TYPE_CHECKING:
    from filmloop.edge.ring import FrameRing

_SWITCH_S = 2e-4
"""Longest that a thread waits for Python's lock while another computes in Python. With Python's own 5 ms, frames waited for
the watcher, who reads and rewrites graphs of new weights: p99 of a batch in the meantime 19 instead of 9 ms."""


def make_stage(place: str, ring: FrameRing) -> Stage:
    """The stage that sits there; only what it needs is imported."""
    spec = ring.spec.read()
    config, home = parse_site(spec["config"]), Home(Path(spec["home"]))
    site, live = Site(file=Path(spec["site_file"]), config=config, home=home), config.source.live
    if place == "source":
        return SourceStage(ring, open_source(site), config.edge, live=live, until=spec["until"], stay=spec["stay"])
    if place in SEATS:
        from filmloop.edge.control import take_look
        from filmloop.edge.drift import DriftMonitor
        from filmloop.edge.models import ModelStore
        from filmloop.edge.stages.inference import InferenceStage
        from filmloop.edge.stages.seated import SeatedInference

        registry = (lambda: open_registry(site, start=False)) if spec["with_registry"] else None
        drift = DriftMonitor(config.drift, home.edge_drift)
        store, asked = ModelStore(config, home, place=place), partial(take_look, home)
        if spec["standby"] and registry is not None:
            return SeatedInference(place, ring, config, store=store, registry=registry, drift=drift, asked=asked)
        return InferenceStage(ring, config, store=store, registry=registry, drift=drift, asked=asked)
    from filmloop.edge.stages.staging import StagingStage

    ledger = open_ledger(site)
    return StagingStage(ring, config, home=home, stream=site.stream, live=live, may_expire=ledger.may_expire)


def run_stage(place: str, ring: FrameRing, make: Callable[[str, FrameRing], Stage]) -> int:
    """Run one stage to its end; returns the exit code, and leaves an error of ours on the stage's board."""
    # Ctrl-C and systemd's SIGTERM reach the whole group.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        make(place, ring).main()
    except FilmloopError as exc:
        News(ring.boards[place]).fatal(exc)
        return exc.exit_code
    return 0


def main(place: str, ring_words: str, make: Callable[[str, FrameRing], Stage] = make_stage) -> None:
    """Be one stage of the service that started this process."""
    sys.setswitchinterval(_SWITCH_S)
    ring = take_over(ring_words)
    log.configure(level=int(ring.spec.read()["log_level"]))
    code = run_stage(place, ring, make)
    logging.shutdown()
    # Native runtimes may hang while they are taken down; everything that has to be durable is.
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
