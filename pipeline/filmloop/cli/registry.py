"""`filmloop registry`: our own MLflow server on this machine."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

import typer

from filmloop.bootstrap import open_site
from filmloop.cli.opening import say
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import err, out, print_json, set_up_logs
from filmloop.core.errors import ConfigError, TransientError

app = typer.Typer(help="The model registry: an MLflow server.", no_args_is_help=True)


@app.command("serve")
def serve(site_file: SiteFile = None, sets: Sets = None) -> None:
    """Run the registry server of this site in the foreground; its address is printed."""
    set_up_logs()
    from filmloop.adapters.mlflow.server import serve as serve_here

    site = open_site(site_file, sets=sets or ())
    if site.config.registry.uri:
        raise ConfigError(
            f"This site uses the registry at {site.config.registry.uri}.",
            hint="Take `uri` out of [registry] to run our own.",
        )
    serve_here(site.home, site.config.registry, announce=lambda text: err.print(text, markup=False))


@app.command("start")
def start(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Start the server in the background unless it runs already, and print the address of its UI."""
    set_up_logs(quiet=True)
    from filmloop.bootstrap import registry_uri

    site = open_site(site_file, sets=sets or ())
    uri = registry_uri(site, start=True, tell=say)
    if site.config.registry.uri:
        _require_answer(uri, site.config.registry.timeout_s)
    page = f"{uri}/#/models/{site.config.registered_model}"
    if json:
        print_json({"uri": uri, "model": site.config.registered_model, "page": page})
    else:
        out.print(f"registry UI: {page}")


def _require_answer(uri: str, timeout_s: float) -> None:
    """See that a server that others run is there; what it says, as that a login is missing, is no matter here.

    Raises:
        TransientError: nothing answers.
    """
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout_s):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise TransientError(
            f"Nothing answers at {uri}, the registry that the site file names: {getattr(exc, 'reason', exc)}.",
            hint="Only its own people can start it; without [registry] uri filmloop starts one here.",
            ids={"uri": uri},
        ) from exc


@app.command("stop")
def stop(site_file: SiteFile = None, sets: Sets = None, json: AsJson = False) -> None:
    """Stop the server that filmloop started in the background."""
    set_up_logs(quiet=True)
    from filmloop.adapters.mlflow.server import stop_server

    site = open_site(site_file, sets=sets or ())
    stopped = stop_server(site.home)
    if json:
        print_json({"stopped": stopped})
    else:
        out.print("stopped" if stopped else "no server of ours was running")
