"""`filmloop models`: versions in the registry, and moving the champion by hand."""

from __future__ import annotations

import getpass
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from filmloop.bootstrap import open_ledger, open_site, registry_is_new
from filmloop.cli.opening import registry_of
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import brief, err, out, print_json, print_table, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.documents import AliasMove
from filmloop.core.errors import DataError
from filmloop.edge.control import request_look
from filmloop.ports.registry import CHAMPION, none_yet, not_there

app = typer.Typer(help="Versions of the model.", no_args_is_help=True)
Why = Annotated[str, typer.Option(help="Reason, for the audit trail.")]


def me() -> str:
    """Who moves an alias by hand: `user@host`."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@app.command("list")
def list_versions(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """List the versions, newest first."""
    set_up_logs(quiet=True)
    from filmloop.zoo.index import data_tag

    site = open_site(site_file, sets=sets or ())
    registry = None if registry_is_new(site) else registry_of(site)
    versions = [] if registry is None else registry.versions()
    model, url = site.config.registered_model, "" if registry is None else registry.url
    if json:
        print_json({"model": model, "url": url, "versions": [info.as_json() for info in versions]})
        return
    if not versions:
        missing = none_yet(model)
        out.print(f"{missing.message} {missing.hint}", markup=False)
        return
    rows = [
        (
            info.version,
            ", ".join(info.aliases),
            info.created_utc,
            info.tags.get("filmloop.gate", ""),
            info.tags.get("filmloop.base_version", ""),
            f"{info.metrics['nll']:.3f}" if "nll" in info.metrics else "",
            "" if (data := data_tag(info)) is None else data.in_words(),
        )
        for info in versions
    ]
    columns = ("version", "alias", "created", "gate", "ancestor", "nll", "trained on")
    print_table(f"{model}  {url}", columns, rows)


@app.command("zoo")
def zoo(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Rank the versions on the newest staged frames, as the next cycle would: nothing is moved or trained."""
    set_up_logs(quiet=True)
    from filmloop.bootstrap import cycle_parts
    from filmloop.selection import newest, usable_shards
    from filmloop.zoo.recall import look_back
    from filmloop.zoo.scorer import Scorer

    site = open_site(site_file, sets=sets or ())
    registry = registry_of(site)
    with open_ledger(site, read_only=True) as ledger, tempfile.TemporaryDirectory(prefix="filmloop-zoo-") as folder:
        states = ledger.shard_states()
        shards = usable_shards(site.home.stage, site.stream, site.config, states)
        if not shards:
            raise DataError(
                f"No frame of stream {site.stream!r} is staged, so there is nothing to score on.",
                hint="`filmloop edge run` stages some.",
            )
        with Scorer(Path(folder) / "work", deadline_s=site.config.zoo.deadline_s) as scorer:
            found = look_back(
                cycle_parts(site, ledger, registry),
                newest(shards, site.config.training.max_fresh_frames),
                lambda: champion.version if (champion := registry.get(CHAMPION)) else "",
                scorer=scorer,
                tell=lambda text: err.print(text, markup=False),
                remember=False,
            )
    if json:
        print_json(found.as_json())
        return
    rows = [
        (
            each.version,
            f"{each.nll:.3f}",
            f"{100 * each.gain:+.2f} %",
            f"{each.distance:.2f}",
            f"{100 * each.over_zero:.2f} %",
            f"{100 * each.own_over_zero:.2f} %",
            "yes" if each.fits else "",
            each.data.in_words(),
        )
        for each in found.candidates
    ]
    columns = ("version", "nll", "over champion", "distance", "over constant", "on its own", "fits", "trained on")
    print_table(
        f"{counted(found.frames, 'held-out frame')}: {found.data.in_words() if found.data else ''}", columns, rows
    )
    out.print(found.message, markup=False)


@app.command("show")
def show(
    version: Annotated[str, typer.Argument(help="A version number or an alias.")],
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """Show one version: its description, lineage and scores."""
    set_up_logs(quiet=True)
    site = open_site(site_file, sets=sets or ())
    registry = registry_of(site)
    info = registry.get(version)
    if info is None:
        raise not_there(registry, version)
    if json:
        print_json(info.as_json())
        return
    from rich.markdown import Markdown

    out.print(Markdown(info.description or f"# version {info.version}"))
    print_table("tags", ("tag", "value"), [(name, brief(value)) for name, value in sorted(info.tags.items())])
    out.print(info.url)


@app.command("history")
def history(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Show which version was champion when, who moved it, and why."""
    set_up_logs(quiet=True)
    site = open_site(site_file, sets=sets or ())
    with open_ledger(site, read_only=True) as ledger:
        moves = ledger.moves(site.config.registered_model, CHAMPION)
    if json:
        print_json({"model": site.config.registered_model, "moves": [move.as_json() for move in moves]})
        return
    rows = [(m.utc, m.from_version or "none", m.to_version, m.who, m.why) for m in moves]
    print_table(f"champion of {site.config.registered_model}", ("when", "from", "to", "who", "why"), rows)


@app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="A version number, or challenger.")],
    why: Why = "promoted by hand",
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """Make a version the champion, past the gate. The edge swaps it in within seconds."""
    set_up_logs(quiet=True)
    from filmloop.promotion import publish

    site = open_site(site_file, sets=sets or ())
    registry = registry_of(site)
    champion, wanted = registry.get(CHAMPION), registry.get(version)
    if wanted is None:
        raise not_there(registry, version)
    with open_ledger(site) as ledger:
        move = publish.promote(
            registry, ledger, version=wanted.version, expected=champion.version if champion else "", who=me(), why=why
        )
    if champion is not None and champion.version == wanted.version and not json:
        out.print(f"version {wanted.version} of {registry.model} is the champion already: nothing was moved")
        return
    request_look(site.home)
    _report(move, json)


@app.command("rollback")
def rollback(
    to: Annotated[
        str | None, typer.Option(help="Version number, or challenger. Default: the champion before this one.")
    ] = None,
    why: Why = "rolled back by hand",
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """Go back to the champion before this one. The edge swaps it in within seconds."""
    set_up_logs(quiet=True)
    from filmloop.promotion import publish

    site = open_site(site_file, sets=sets or ())
    registry = registry_of(site)
    with open_ledger(site) as ledger:
        move = publish.rollback(registry, ledger, who=me(), why=why, to=to)
    request_look(site.home)
    _report(move, json)


def _report(move: AliasMove, json: bool) -> None:
    if json:
        print_json(move.as_json())
    else:
        out.print(f"{move.alias} of {move.model}: version {move.from_version or 'none'} -> {move.to_version}")
