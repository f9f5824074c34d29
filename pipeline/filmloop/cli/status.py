"""`filmloop status` and `filmloop history`: what is live, since when, how good. Reads files only; starts nothing."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from filmloop.bootstrap import Site, open_ledger, open_site
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import out, print_json, print_table, set_up_logs
from filmloop.core.clock import epoch_s
from filmloop.core.counted import counted
from filmloop.drift.report import DriftReport
from filmloop.ledger import DAMAGED, Ledger
from filmloop.ports.registry import CHAMPION

_WANTS_LOGIN = (401, 403)
_OLD_S = 10.0
"""An edge that runs writes its status every few seconds, whatever else it does."""


def status(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Show the champion, the edge, the last cycle, the shards, the warm worker and the registry."""
    set_up_logs(quiet=True)
    site = open_site(site_file, sets=sets or ())
    with open_ledger(site, read_only=True) as ledger:
        found = {
            "site": site.config.site,
            "home": str(site.home.root),
            "champion": _champion(site, ledger),
            "edge": _edge(site),
            "last_cycle": _last_cycle(ledger),
            "shards": _shards(site, ledger),
            "registry": _registry(site),
            "worker": _worker(site),
        }
    if json:
        print_json(found)
    else:
        _print(found)


def history(
    limit: Annotated[int, typer.Option(help="How many cycles.", min=1, max=1_000_000)] = 20,
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """List the latest cycles and what they came to."""
    set_up_logs(quiet=True)
    site = open_site(site_file, sets=sets or ())
    with open_ledger(site, read_only=True) as ledger:
        cycles = ledger.history(limit)
    if json:
        print_json(
            {"cycles": [{"cycle_id": c.cycle_id, "started_utc": c.started_utc, "finished_utc": c.finished_utc,
                         "outcome": c.outcome or "open", **c.summary} for c in cycles]}
        )  # fmt: skip
        return
    rows = [
        (c.cycle_id, c.started_utc, c.outcome or "open", c.summary.get("version", ""), c.summary.get("message", ""))
        for c in cycles
    ]
    print_table("cycles, newest first", ("cycle", "started", "outcome", "version", "what happened"), rows)


def _champion(site: Site, ledger: Ledger) -> dict[str, Any] | None:
    """The last move that this site's journal knows of; the registry itself is not asked."""
    moves = ledger.moves(site.config.registered_model, CHAMPION, limit=1)
    if not moves:
        return None
    move = moves[0]
    return {"model": move.model, "version": move.to_version, "since_utc": move.utc, "who": move.who, "why": move.why}


def _edge(site: Site) -> dict[str, Any] | None:
    from filmloop.edge.status import is_alive, read_status

    found = read_status(site.home)
    if found is None:
        return None
    return {"alive": is_alive(site.home), **found.as_json()}


def _last_cycle(ledger: Ledger) -> dict[str, Any] | None:
    for row in ledger.history(1):
        steps = {step.name: round(step.seconds, 3) for step in ledger.steps(row.cycle_id)}
        return {"cycle_id": row.cycle_id, "started_utc": row.started_utc, "finished_utc": row.finished_utc,
                "outcome": row.outcome or "open", "steps": steps, **row.summary}  # fmt: skip
    return None


def _shards(site: Site, ledger: Ledger) -> dict[str, Any]:
    from filmloop.selection import frames_of, is_fresh, usable_shards
    from filmloop.staging.catalog import damaged, sealed_shards

    states = ledger.shard_states()
    shards = [shard.manifest for shard in sealed_shards(site.home.stage)]
    fresh = usable_shards(site.home.stage, site.stream, site.config, states)
    fresh = [shard for shard in fresh if is_fresh(shard, states)]
    return {
        "sealed": len(shards),
        "frames": sum(shard.frames for shard in shards),
        "bytes": sum(shard.size_bytes for shard in shards),
        "fresh": len(fresh),
        "fresh_frames": frames_of(fresh),
        "damaged": len(damaged(site.home.stage)) + sum(states.get(s.shard_id) == DAMAGED for s in shards),
    }


def _registry(site: Site) -> dict[str, Any]:
    uri, model = site.config.registry.uri, site.config.registered_model
    problem = _problem_of(uri) if uri else ""
    if not uri:
        uri = _own_server(site)
        problem = "" if uri else "not running; `filmloop registry start` starts it"
    page = "" if problem else f"{uri}/#/models/{model}"
    return {"uri": uri, "alive": not problem, "model": model, "page": page, "problem": problem}


def _own_server(site: Site) -> str:
    from filmloop.adapters.mlflow.server import find_server
    from filmloop.core.errors import FilmloopError

    try:
        return find_server(site.home, site.config.registry) or ""
    except FilmloopError:
        return ""


def _worker(site: Site) -> dict[str, Any]:
    """Whether the warm worker lives: its lock is looked at, it is not asked."""
    from filmloop.adapters.local.held import is_held
    from filmloop.adapters.local.workerline import LOCK

    launcher = site.config.launcher
    return {"warm": launcher.kind == "local" and launcher.warm, "alive": is_held(site.home.worker / LOCK)}


def _problem_of(uri: str) -> str:
    """Why a registry of the site's own does not say that it is well; '' if it does. One look, without a login."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1.0):
            return ""
    except urllib.error.HTTPError as exc:
        if exc.code in _WANTS_LOGIN:
            return f"{uri} answers and wants a login; `filmloop site check` tries yours"
        return f"{uri} answers with HTTP status {exc.code}; `filmloop site check` says more"
    except (urllib.error.URLError, OSError, ValueError):
        return f"{uri} does not answer; `filmloop site check` says more"


def _unstaged(frames: dict[str, int]) -> str:
    return f", not staged {sum(frames.values()):,} {frames}" if frames else ""


def _print(found: dict[str, Any]) -> None:
    champion, edge, cycle = found["champion"], found["edge"], found["last_cycle"]
    shards, registry = found["shards"], found["registry"]
    out.print(f"site      {found['site']}, state in {found['home']}", markup=False)
    if champion:
        out.print(
            f"champion  version {champion['version']} since {champion['since_utc']} ({champion['why']})", markup=False
        )
    else:
        out.print("champion  none yet; `filmloop retrain` makes the first")
    if edge and edge["alive"]:
        dropped = sum(edge["frames_dropped"].values())
        out.print(
            f"edge      {edge['state']}, serves version {edge['version'] or 'none'}, {edge['rate_hz']:,.0f} frames/s; "
            f"in {edge['frames_in']:,}, inferred {edge['frames_inferred']:,}, dropped {dropped:,} {edge['frames_dropped'] or ''}, "
            f"staged {edge['frames_staged']:,}" + _unstaged(edge["frames_unstaged"]),
            markup=False,
        )
        if (age_s := time.time() - epoch_s(edge["updated_utc"])) > _OLD_S:
            out.print(f"          that is {age_s:.0f} s old: the edge cannot write its status", markup=False)
        if edge["drift"]:
            out.print(f"drift     {DriftReport.model_validate(edge['drift']).in_words()}", markup=False)
        if edge["last_problem"]:
            out.print(f"          last problem {edge['last_problem_utc']}: {edge['last_problem']}", markup=False)
    else:
        out.print("edge      not running; `filmloop edge run` starts it")
    if cycle:
        out.print(
            f"cycle     {cycle['cycle_id']} {cycle['outcome']}: {cycle.get('message', 'goes on with the next retrain')}",
            markup=False,
        )
    out.print(
        f"shards    {shards['sealed']:,} sealed with {counted(shards['frames'], 'frame')} ({shards['bytes'] / 1e6:.0f} MB), "
        f"{counted(shards['fresh_frames'], 'frame')} fresh"
        + (f", {shards['damaged']} damaged" if shards["damaged"] else "")
    )
    if found["worker"]["warm"]:
        alive = "ready for the next job" if found["worker"]["alive"] else "none; `filmloop retrain` starts one"
        out.print(f"worker    {alive}", markup=False)
    out.print(f"registry  {registry['page'] or registry['problem']}", markup=False)
