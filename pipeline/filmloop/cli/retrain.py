"""`filmloop retrain`: one cycle, with whatever the site needs to run it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from filmloop.bootstrap import open_site
from filmloop.cli.next_steps import next_steps
from filmloop.cli.options import AsJson, Sets, SiteFile, Source
from filmloop.cli.output import Progress, err, out, print_json, print_table, set_up_logs
from filmloop.core.documents import CycleReport
from filmloop.edge.lock import is_alive

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell: 128 + SIGINT."""


def retrain(
    site_file: SiteFile = None,
    source: Source = "",
    sets: Sets = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train on the newest shards even if a cycle has trained on them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run it whatever drift.policy says.")] = False,
    no_edge: Annotated[
        bool, typer.Option("--no-edge", help="Use what is staged; start no edge for this cycle.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Run one retraining cycle, or take up the one that was cut off.

    Starts the registry if the site has none running, and an edge for the time of the cycle if none is running.
    """
    set_up_logs(quiet=True)
    from filmloop.local_loop import retrain_once

    site = open_site(site_file, sets=sets or (), source=source)
    try:
        with Progress() as tell:
            report = retrain_once(site, again=again, force=force, with_edge=not no_edge, tell=tell)
    except KeyboardInterrupt:
        err.print("interrupted: a training that has begun goes on; the next `filmloop retrain` takes this cycle up")
        # Threads that load libraries would be waited for; what has to be durable is.
        logging.shutdown()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)
    if json:
        print_json(report.as_json())
    else:
        _print_report(report)
        # Without an activated environment `filmloop` alone is not found: name it as it was called.
        me = "filmloop" if shutil.which("filmloop") else sys.argv[0]
        steps = next_steps(report, edge_runs=is_alive(site.home))
        out.print(f"next         {' | '.join(f'{me} {step}' for step in steps)}", markup=False)


def _print_report(report: CycleReport) -> None:
    """What happened, for people."""
    out.print(f"[bold]{report.outcome}[/bold]: {escape(report.message)}")
    if report.outcome in ("busy", "nothing_to_do"):
        return
    rows: list[tuple[str, Any]] = [("cycle", report.cycle_id), ("version", report.version or "none")]
    origin = f"version {report.base_version}" if report.base_version else "scratch"
    rows.append(("started from", "nothing: it was not trained again" if report.recalled else origin))
    for name, text in (("nll", "challenger"), ("nll_champion", "champion before"), ("nll_gaussian", "tuned Gaussian")):
        if name in report.metrics:
            rows.append((f"NLL {text}", f"{report.metrics[name]:.3f} nats a frame, held-out"))
    rows.append(("frames", f"{report.frames:,} fresh"))
    if report.train_s is not None and report.overhead_s is not None:
        rows.append(("time", f"{report.train_s:.1f} s training, {report.overhead_s:.1f} s everything else"))
        rows.append(("steps", "  ".join(f"{name} {seconds:.1f}" for name, seconds in report.steps.items())))
    if report.turnaround_s is not None:
        rows.append(("turnaround", f"{report.turnaround_s:.1f} s from the newest sealed shard to live at the edge"))
    print_table("", ("", ""), rows)
    if report.url:
        out.print(f"registry UI  {report.url}", markup=False)
