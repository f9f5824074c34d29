"""The `filmloop` command: one Typer app, one module a group of commands, one place where errors become exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape

import filmloop
from filmloop.cli import (
    auth,
    bench,
    demo,
    drift,
    edge,
    evaluate,
    models,
    registry,
    retrain,
    shards,
    simulate,
    site,
    status,
    worker,
)
from filmloop.cli.output import err, print_json
from filmloop.core.errors import FilmloopError

app = typer.Typer(
    help="Keeps the AI model in front of an X-ray laser fresh: watch, stage, retrain, judge, swap.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("retrain")(retrain.retrain)
app.command("status")(status.status)
app.command("history")(status.history)
app.command("evaluate")(evaluate.evaluate)
app.command("simulate")(simulate.simulate)
app.command("demo")(demo.demo)
app.command("login")(auth.login)
app.command("logout")(auth.logout)
app.command("whoami")(auth.whoami)
app.add_typer(edge.app, name="edge")
app.add_typer(drift.app, name="drift")
app.add_typer(bench.app, name="bench")
app.add_typer(registry.app, name="registry")
app.add_typer(worker.app, name="worker")
app.add_typer(shards.app, name="shards")
app.add_typer(models.app, name="models")
app.add_typer(site.app, name="site")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"filmloop {filmloop.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Keeps the AI model in front of an X-ray laser fresh: watch, stage, retrain, judge, swap."""


def run() -> None:
    """Entry point: run a command; an error of ours becomes its message, its hint and its exit code."""
    try:
        app(standalone_mode=True)
    except FilmloopError as exc:
        if "--json" in sys.argv:
            print_json(exc.as_dict())
        err.print(f"[red]{type(exc).__name__}[/red] {escape(exc.message)}")
        for name, value in exc.ids.items():
            err.print(f"  {name}: {value}", markup=False)
        if exc.hint:
            err.print(f"  hint: {exc.hint}", markup=False)
        sys.exit(exc.exit_code)
    except Exception as exc:
        traceback.print_exc()
        err.print(f"{type(exc).__name__}: this is a bug in filmloop; please report the lines above", markup=False)
        sys.exit(FilmloopError.exit_code)


if __name__ == "__main__":
    run()
