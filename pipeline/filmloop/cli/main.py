"""The `filmloop` command: one Typer app, one module a group of commands, one place where errors become exit codes."""

from __future__ import annotations

import errno
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
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
from filmloop.core.errors import ConfigError, FilmloopError, TransientError
from filmloop.core.fsio import translate_os_error
from filmloop.core.signals import repeat_lost_interrupts
from filmloop.core.wording import in_words

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


_OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


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
    repeat_lost_interrupts()
    try:
        # Not standalone: a wrong option is an error of ours too, in our words.
        code = app(standalone_mode=False, prog_name="filmloop")
    except FilmloopError as exc:
        _refuse(exc)
    except MemoryError as exc:
        _refuse(
            TransientError(
                f"There is not enough memory: {str(exc) or 'nothing is left'}.".replace("..", "."),
                hint="Lower [frame] or edge.ring_mb in the site file; `filmloop site check` says what this machine has.",
            )
        )
    except Exception as exc:
        if (refusal := wrong_call(exc) or _refusal_of_the_system(exc)) is not None:
            _refuse(refusal)
        if type(exc).__name__ == "NoArgsIsHelpError":  # the help was shown instead
            sys.exit(ConfigError.exit_code)
        traceback.print_exc()
        err.print(f"{type(exc).__name__}: this is a bug in filmloop; please report the lines above", markup=False)
        sys.exit(FilmloopError.exit_code)
    sys.exit(code or 0)


def _refuse(exc: FilmloopError) -> NoReturn:
    if "--json" in sys.argv:
        with suppress(OSError):
            print_json(exc.as_dict())
    err.print(f"[red]{type(exc).__name__}[/red] {escape(exc.message)}")
    for name, value in exc.ids.items():
        err.print(f"  {name}: {value}", markup=False)
    if exc.hint:
        err.print(f"  hint: {exc.hint}", markup=False)
    sys.exit(exc.exit_code)


def _refusal_of_the_system(exc: Exception) -> FilmloopError | None:
    """A full disk, a right that is missing, a name that is too long, where nobody foresaw it: no bug."""
    if not isinstance(exc, OSError) or exc.errno not in _OF_THE_SYSTEM:
        return None
    return translate_os_error(exc, Path(exc.filename or "what the command prints"))


def wrong_call(exc: Exception) -> ConfigError | None:
    """A word, an option or a value of the command line that the command does not take; None for any other exception.

    Typer's exceptions are its own or click's, by its version: what both have is looked for.
    """
    context = getattr(exc, "ctx", None)
    if not hasattr(exc, "format_message") or type(exc).__name__ == "NoArgsIsHelpError":
        return None
    said, inner = exc.format_message().strip().rstrip("."), exc.__cause__
    if isinstance(inner, ValidationError):
        error = inner.errors()[0]
        said = f"{said.partition(': ')[0]}: {'' if error['type'] == 'value_error' else 'it '}{in_words(error)}"
    called = getattr(context, "command_path", "filmloop")
    return ConfigError(f"{said}.", hint=f"`{called} --help` lists what it takes.")
