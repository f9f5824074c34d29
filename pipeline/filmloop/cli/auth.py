"""`filmloop login`, `logout` and `whoami`: who the site is at Globus."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from filmloop.bootstrap import Site, open_site, prepare_globus
from filmloop.cli.options import AsJson, Sets, SiteFile
from filmloop.cli.output import err, out, print_json, set_up_logs
from filmloop.core.errors import AuthError, ConfigError

if TYPE_CHECKING:
    from filmloop.adapters.globus.identity.login import Who


class Role(StrEnum):
    """Who brings data up, and who brings weights home."""

    data = "data"
    weights = "weights"


RoleOption = Annotated[Role | None, typer.Option("--role", help="Only this identity. Default: all that the site has.")]


def login(
    site_file: SiteFile = None,
    sets: Sets = None,
    role: Annotated[Role, typer.Option("--role", help="Which of the site's identities.")] = Role.data,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="A consent that an error asked for.")] = None,
    policy: Annotated[list[str] | None, typer.Option("--policy", help="A session policy that it asked for.")] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="An identity provider that it asked for.")
    ] = None,
    identity: Annotated[list[str] | None, typer.Option("--identity", help="An identity that it asked for.")] = None,
    mfa: Annotated[bool, typer.Option("--mfa", help="It asked for a second factor.")] = False,
    json: AsJson = False,
) -> None:
    """Log in to Globus for all that this site needs; on a terminal. An application's secret is only tried."""
    set_up_logs(quiet=True)
    site = _globus_site(site_file, sets or ())
    from filmloop.adapters.globus.identity.login import Asked, log_in

    asked = Asked(
        scopes=tuple(scope or ()),
        policies=tuple(policy or ()),
        domains=tuple(domain or ()),
        identities=tuple(identity or ()),
        mfa=mfa,
    )
    found = log_in(site.config, role.value, ask=_ask, asked=asked)
    if found.login == "client":
        err.print("An application needs no login; its secret works.", markup=False)
    _show([found], json=json)


def logout(site_file: SiteFile = None, sets: Sets = None, role: RoleOption = None, json: AsJson = False) -> None:
    """Revoke the site's tokens at Globus and remove their files."""
    set_up_logs(quiet=True)
    site = _globus_site(site_file, sets or ())
    from filmloop.adapters.globus.identity.login import log_out, roles_of, still_good

    done = {name: log_out(site.config, name) for name in roles_of(site.config) if role in (None, name)}
    if json:
        print_json({"tokens": done})
        return
    words = {"revoked": "tokens revoked and removed", "none": "there were no tokens to revoke"}
    for name, state in done.items():
        text = words.get(state) or f"tokens removed, but not revoked: {still_good(site.config, name)}"
        out.print(f"{name}: {text}", markup=False)


def whoami(site_file: SiteFile = None, sets: Sets = None, role: RoleOption = None, json: AsJson = False) -> None:
    """Say who the site is at Globus, what it may do and for how long; exit code 4 if something is missing."""
    set_up_logs(quiet=True)
    site = _globus_site(site_file, sets or ())
    from filmloop.adapters.globus.identity.login import nobody, roles_of, who_is

    found = []
    for name in roles_of(site.config):
        if role in (None, name):
            try:
                found.append(who_is(site.config, name))
            except AuthError as exc:
                found.append(nobody(site.config, name, exc))
    _show(found, json=json)


def _globus_site(file: Path | None, sets: list[str] | tuple[str, ...]) -> Site:
    site = open_site(file, sets=sets)
    if "globus" not in (site.config.mover.kind, site.config.launcher.kind):
        raise ConfigError(
            f"{site.file} uses no Globus: neither its mover nor its launcher is of the kind `globus`.",
            hint="Name the site with --site FILE.",
        )
    prepare_globus(site)
    return site


def _ask(url: str) -> str:
    if not sys.stdin.isatty():
        raise AuthError(
            "A login needs a terminal: a person visits an address and brings a code back.",
            hint="Run the same command where you can type.",
        )
    err.print("Visit this address, log in, and agree:", markup=False)
    err.print(f"\n{url}\n", markup=False)
    err.print("Then paste the code here: ", markup=False, end="")
    code = sys.stdin.readline().strip()
    if not code:
        raise AuthError("No code was given.", hint="Run the same command again.")
    return code


def _show(found: list[Who], *, json: bool) -> None:
    if json:
        print_json({"roles": [who.as_dict() for who in found]})
    else:
        for who in found:
            _print(who)
    if any(who.missing for who in found):
        raise typer.Exit(AuthError.exit_code)


def _print(who: Who) -> None:
    how = "an application, with its secret" if who.login == "client" else "a person who logged in"
    out.print(f"{who.role}: {who.identity or 'nobody'} ({how}; client {who.client_id})", markup=False)
    for server, token in sorted(who.tokens.items()):
        renewal = "renewed by itself" if token.renews else "not renewed"
        lasts = f"{token.lasts_s / 3600:.1f} h left" if token.lasts_s > 0 else "ended"
        out.print(f"  {server}: {lasts}, {renewal}; {' '.join(token.scopes)}", markup=False)
    for text in who.missing:
        out.print(f"  missing: {text}" if text != who.missing[-1] else f"  {text}", markup=False)
