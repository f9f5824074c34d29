"""`filmloop drift`: what changed since the live version went live."""

from __future__ import annotations

import threading
from typing import Any

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.options import AsJson, Sets, SiteFile, Source
from filmloop.cli.output import err, out, print_json, print_table, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.signals import stopped_by_signals
from filmloop.drift.report import DriftReport

app = typer.Typer(help="What changed since the live version went live.", no_args_is_help=True)


@app.command("status")
def status(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Say in words what the edge sees: what drifted, by how much, and what is done about it."""
    set_up_logs(quiet=True)
    from filmloop.edge.status import is_alive, read_status

    site = open_site(site_file, sets=sets or ())
    edge, alive = read_status(site.home), is_alive(site.home)
    seen = edge.drift if edge is not None else None
    if json:
        policy = site.config.drift.policy
        print_json({"alive": alive, "policy": policy, "drift": None if seen is None else seen.as_json()})
        return
    if not alive:
        out.print("edge not running; `filmloop edge run` starts it" + ("; it last said:" if seen else ""))
    if seen is None:
        out.print("drift: nothing seen yet; it takes a champion and frames")
        return
    out.print(f"drift: {seen.in_words()}", markup=False)
    print_table("", ("", ""), _rows(seen, site.config.drift.policy))


@app.command("watch")
def watch(site_file: SiteFile = None, source: Source = "", sets: Sets = None) -> None:
    """Wait beside the running edge, and begin a cycle as soon as a drift needs training. SIGTERM ends it after the cycle under way, a second one at once."""
    set_up_logs()
    from filmloop.watching import Watch

    site = open_site(site_file, sets=sets or (), source=source)
    stop = threading.Event()
    err.print(f"watching the edge of site {site.config.site}; SIGTERM ends it", markup=False)
    with stopped_by_signals(stop):
        Watch(site, lambda step, text: err.print(f"{step:<9} {text}", markup=False)).run(stop)


def _rows(seen: DriftReport, policy: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("live version", seen.version)]
    rows += [("found", finding.text) for finding in seen.findings]
    if seen.alarm:
        rows.append(("needs training", "yes" if seen.needs_training else "no"))
    if gain := seen.gain:
        masked = f"; masked: {', '.join(map(str, gain.dead))}" if gain.dead else ""
        rows.append(("input gain", " ".join(f"{g:.2f}" for g in gain.gain_C) + masked))
    if seen.nll_reference is not None:
        rows.append(
            (
                "NLL when it went live",
                f"{seen.nll_reference:.2f} nats a frame ({seen.nll_reference_low:.2f} to {seen.nll_reference_high:.2f})",
            )
        )
    if seen.nll is not None:
        rows.append(
            (
                "NLL now",
                f"{seen.nll:.2f}; beyond what the number of hits explains {seen.nll_excess:+.2f} ± {seen.nll_excess_sd:.2f}",
            )
        )
    rows.append(("windows tested", f"{seen.windows:,} ({counted(seen.frames, 'sampled frame')})"))
    if seen.z:
        rows.append(("standard deviations", "  ".join(f"{name} {z:+.1f}" for name, z in seen.z.items())))
        rows.append(("alarm beyond", f"{seen.threshold:.2f}"))
    rows.append(("policy", policy))
    return rows
