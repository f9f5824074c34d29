"""`filmloop edge`: the service at the instrument."""

from __future__ import annotations

from typing import Annotated

import typer

from filmloop.bootstrap import edge_service, open_ledger, open_site
from filmloop.cli.options import AsJson, Sets, SiteFile, Source
from filmloop.cli.output import err, print_json, set_up_logs

app = typer.Typer(help="The service at the instrument.", no_args_is_help=True)


@app.command("run")
def run(
    site_file: SiteFile = None,
    source: Source = "",
    sets: Sets = None,
    frames: Annotated[int | None, typer.Option(help="Stop after this many frames.", min=1)] = None,
    stay: Annotated[
        bool, typer.Option("--stay", help="At the end of the data, stay and keep the champion loaded.")
    ] = False,
    tied: Annotated[bool, typer.Option("--tied", hidden=True, help="Stop when standard input closes.")] = False,
    no_registry: Annotated[
        bool, typer.Option("--no-registry", help="Serve the last verified weights; look for no new ones.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Watch every frame, stage it, serve the champion; swap when the registry has a new one. SIGTERM stops it cleanly."""
    set_up_logs()
    from filmloop.edge.process import run_until_signalled
    from filmloop.edge.status import read_status

    site = open_site(site_file, sets=sets or (), source=source)
    words = f"edge at site {site.config.site}, stream {site.stream}; state in {site.home.root}; SIGTERM stops it"
    with open_ledger(site) as ledger:
        service = edge_service(site, ledger, with_registry=not no_registry, stay=stay)
        run_until_signalled(
            service, max_frames=frames, tied=tied, begun=lambda: None if json else err.print(words, markup=False)
        )
    if json and (status := read_status(site.home)) is not None:
        print_json(status.as_json())
