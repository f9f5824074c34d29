"""`filmloop worker`: the process that has torch loaded and forks the ranks of local jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from filmloop.bootstrap import Site, open_site, warm_worker
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import out, print_json, set_up_logs
from filmloop.core.counted import counted
from filmloop.core.errors import ConfigError

if TYPE_CHECKING:
    from filmloop.adapters.local.workerclient import WarmWorker

app = typer.Typer(help="The warm worker: ranks without a start.", no_args_is_help=True)


@app.command("run")
def run(site_file: SiteFile = None, sets: Sets = None) -> None:
    """Be the worker, in the foreground, until SIGTERM or Ctrl-C or until it has been idle for `launcher.warm_idle_s`.

    One that `filmloop retrain` started makes room; a job that it has begun goes on.
    """
    set_up_logs(quiet=True)
    _worker(open_site(site_file, sets=sets or ())).run()


@app.command("status")
def status(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Show whether it is alive, and its memory. Starts nothing."""
    set_up_logs(quiet=True)
    found = _worker(open_site(site_file, sets=sets or ())).status()
    if json:
        print_json(found)
    elif found["state"] == "ready":
        out.print(
            f"ready: pid {found['pid']} since {found['since_utc']}, {counted(found['jobs'], 'job')}, {found['rss_mb']:.0f} MB",
            markup=False,
        )
    else:
        out.print(f"{found['state']}; `filmloop retrain` starts one if need be", markup=False)


@app.command("stop")
def stop(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """End it; a job that runs goes on."""
    set_up_logs(quiet=True)
    stopped = _worker(open_site(site_file, sets=sets or ())).stop()
    if json:
        print_json({"stopped": stopped})
    else:
        out.print("stopped" if stopped else "no worker was alive")


def _worker(site: Site) -> WarmWorker:
    worker = warm_worker(site)
    if worker is None:
        raise ConfigError("This site starts its jobs cold.", hint="Set `[launcher] warm = true` in the site file.")
    return worker
