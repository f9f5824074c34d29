"""`filmloop site`: is this site ready?"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.options import AsJson, Sets, SiteFile, Source
from filmloop.cli.output import out, print_json, set_up_logs
from filmloop.core.errors import ConfigError

app = typer.Typer(help="The site.", no_args_is_help=True)
Job = Annotated[
    bool,
    typer.Option(
        "--job",
        help="Look at a compute node, too, by short functions through the queue. Their job may wait there; after Ctrl-C "
        "or queue_wait_s it stays queued: `qstat -u $USER` or `squeue --me` there shows it.",
    ),
]
_ITEM = 20
_MARK = {"ok": "[green]ok[/green]  ", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what was begun at another facility is taken back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.callback()
def _group() -> None:
    """The site."""


@app.command("check")
def check(
    site_file: SiteFile = None, source: Source = "", sets: Sets = None, job: Job = False, json: AsJson = False
) -> None:
    """Test everything that a cycle needs, item by item, and say what to do. Exit code 2 if an item fails.

    Nothing is left behind, neither here nor at another facility, but for a job that `--job` has queued.
    """
    set_up_logs(quiet=True)
    from filmloop.checks.site import check_site

    site = open_site(site_file, sets=sets or (), source=source)
    findings = []
    with _terminated_as_interrupted(), closing(check_site(site, job=job)) as checks:
        for finding in checks:
            findings.append(finding)
            if not json:
                out.print(f"{_MARK[finding.state]}  {finding.item:<{_ITEM}}", end="")
                out.print(finding.detail, markup=False)
                if finding.hint:
                    out.print(f"{'':<{_ITEM + 6}}-> {finding.hint}", markup=False)
    failed = [finding.item for finding in findings if finding.state == "fail"]
    if json:
        print_json({"site": site.config.site, "ready": not failed, "items": [asdict(finding) for finding in findings]})
    if failed:
        raise typer.Exit(ConfigError.exit_code)
