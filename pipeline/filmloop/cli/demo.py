"""`filmloop demo`: the story of the loop."""

from __future__ import annotations

from typing import Annotated

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import Progress, out, print_json, print_table, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.errors import TrainingError


def demo(
    seconds: Annotated[float, typer.Option(help="Training time of each cycle; more on a slow machine.", min=1)] = 25.0,
    site_file: SiteFile = None,
    sets: Sets = None,
    json: AsJson = False,
) -> None:
    """Watch the loop close: drift, retrain, a worse challenger refused, a rollback. About three minutes.

    Exit code 6 if the story did not go as told.
    """
    set_up_logs(quiet=True)
    from filmloop.demo.story import run_demo

    site = open_site(site_file, sets=sets or ())
    with Progress() as tell:
        report = run_demo(site, train_s=seconds, tell=tell)
    if json:
        print_json(report.as_json())
    else:
        rows = [(a.at_s, a.act, a.version, "" if a.loss is None else a.loss, a.text) for a in report.acts]
        print_table("the story", ("s", "act", "live", "loss, nats a frame", "what happened"), rows)
        print_table(
            "what it must show", ("", ""), [("yes" if ok else "NO", text) for text, ok in report.checks.items()]
        )
        dropped = report.frames_in - report.frames_inferred
        out.print(
            f"frames in {report.frames_in:,} = inferred {report.frames_inferred:,} + dropped {dropped:,} "
            f"{report.frames_dropped or ''}; {counted(report.swaps, 'swap')}; {report.seconds:.0f} s",
            markup=False,
        )
        out.print(f"plot      {report.plot}\nregistry  {report.page}", markup=False)
    if not report.ok:
        raise typer.Exit(TrainingError.exit_code)
