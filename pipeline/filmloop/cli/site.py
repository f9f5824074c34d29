"""`filmloop site`: is this site ready?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.options import AsJson, Sets, SiteFile, Source
from filmloop.cli.output import out, print_json, set_up_logs
from filmloop.core.errors import ConfigError

app = typer.Typer(help="The site.", no_args_is_help=True)
_MARK = {"ok": "[green]ok[/green]  ", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


@app.callback()
def _group() -> None:
    """The site."""


@app.command("check")
def check(site_file: SiteFile = None, source: Source = "", sets: Sets = None, json: AsJson = False) -> None:
    """Test everything that a cycle needs, item by item, and say what to do. Exit code 2 if an item fails."""
    set_up_logs(quiet=True)
    from filmloop.checks.site import check_site

    site = open_site(site_file, sets=sets or (), source=source)
    findings = []
    for finding in check_site(site):
        findings.append(finding)
        if not json:
            out.print(f"{_MARK[finding.state]}  {finding.item:<13}", end="")
            out.print(finding.detail, markup=False)
            if finding.hint:
                out.print(f"{'':<19}-> {finding.hint}", markup=False)
    failed = [finding.item for finding in findings if finding.state == "fail"]
    if json:
        print_json({"site": site.config.site, "ready": not failed, "items": [asdict(finding) for finding in findings]})
    if failed:
        raise typer.Exit(ConfigError.exit_code)
