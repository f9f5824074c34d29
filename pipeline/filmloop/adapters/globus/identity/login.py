"""Logging in and out, and who is logged in: what `filmloop login`, `logout` and `whoami` do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import globus_sdk
from globus_sdk import GlobusApp, GlobusAppConfig
from globus_sdk.gare import GlobusAuthorizationParameters
from globus_sdk.login_flows import CommandLineLoginFlowManager
from globus_sdk.scopes import AuthScopes, Scope
from globus_sdk.token_storage import TokenStorageData

from filmloop.adapters.globus.errors import globus_errors, real_answers
from filmloop.adapters.globus.identity.auth import APP_NAME, needed_scopes, open_app
from filmloop.adapters.globus.identity.tokenstore import TokenStore
from filmloop.adapters.globus.identity.who import (
    Identity,
    Role,
    access_hint,
    identity_of,
    login_command,
    remember_identity,
)
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import AuthError

_AUTH = "Globus Auth"
LoggedOut = Literal["revoked", "none", "removed"]
"""What became of tokens; `removed`: their file is gone, but without a secret, or damaged, they could not be revoked."""
Ask = Callable[[str], str]
"""Shows a person the address to visit, and returns the code that they bring back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a login has to satisfy beyond what the site file says."""

    scopes: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    mfa: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFacts:
    """What may be said of a token."""

    scopes: tuple[str, ...]
    lasts_s: int
    """Seconds until the access token ends; below 0: it has ended."""
    renews: bool
    """It is renewed without a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who acts in a role, and whether that is enough for the site."""

    role: Role
    login: str
    client_id: str
    identity: str = ""
    """As Globus writes it, `name@domain`; '' if it is not known."""
    identity_id: str = ""
    tokens: dict[str, TokenFacts] = field(default_factory=dict)
    """By resource server."""
    missing: tuple[str, ...] = ()
    """What the site needs and is not there, each with what to do."""
    file: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The form that `--json` prints."""
        return asdict(self)


def roles_of(config: SiteConfig) -> tuple[Role, ...]:
    """The roles that are different identities."""
    return ("data", "weights") if identity_of(config.globus, "weights").role == "weights" else ("data",)


def log_in(config: SiteConfig, role: Role, *, ask: Ask, asked: Asked = Asked()) -> Who:
    """Log a person in, for everything that the site needs; of an application, try its secret.

    Raises:
        AuthError: the code is not right, or another person is logged in already.
        TransientError: Globus is away.
    """
    section, who = config.globus, identity_of(config.globus, role)
    app = open_app(section, role, scopes=needed_scopes(config, role), login_flow=_through(ask))
    policies = [*section.policies, *asked.policies]
    domains = [*section.domains, *asked.domains]
    strict = bool(policies or domains or asked.identities or asked.mfa)
    params = GlobusAuthorizationParameters(
        required_scopes=list(asked.scopes) or None,
        session_required_policies=list(dict.fromkeys(policies)) or None,
        session_required_single_domain=list(dict.fromkeys(domains)) or None,
        session_required_identities=list(asked.identities) or None,
        session_required_mfa=asked.mfa or None,
        prompt="login" if strict else None,
    )
    hint = (
        "" if who.login == "client" else f"A code is good once, for ten minutes. `{login_command(role)}` starts again."
    )
    with globus_errors("Logging in", role=role, hint=hint), real_answers(_AUTH):
        app.login(auth_params=None if who.login == "client" else params, force=True)
    return who_is(config, role)


def log_out(config: SiteConfig, role: Role) -> LoggedOut:
    """Revoke the tokens of a role and remove their file, also where they cannot be revoked.

    Raises:
        AuthError: Globus refuses to revoke them; they are still there.
        TransientError: Globus is away; what was not revoked is still there.
    """
    who = identity_of(config.globus, role)
    remember_identity(role, who)
    store = _store(who)
    if not store.file_exists():
        return "none"
    with suppress(OSError):
        os.chmod(store.filepath, 0o600)
    held = True
    try:
        held = bool(store.get_token_data_by_resource_server())
        app = open_app(config.globus, role)
    except AuthError:
        store.remove()
        return "removed" if held else "none"
    with globus_errors("Logging out", role=role), real_answers(_AUTH):
        app.logout(sweep=True)
    store.remove()
    return "revoked" if held else "none"


def still_good(config: SiteConfig, role: Role) -> str:
    """What to do about tokens that were removed and not revoked."""
    who = identity_of(config.globus, role)
    if who.login == "user":
        return "revoke them at https://app.globus.org/settings/consents"
    return f"they end within two days; with {who.secret_name} in the environment `filmloop logout` revokes them"


def who_is(config: SiteConfig, role: Role) -> Who:
    """Who acts in a role; an application's secret is tried, a person's login is asked after.

    Raises:
        AuthError: the secret is missing or wrong, or the file of tokens cannot be used.
        TransientError: Globus is away.
    """
    who, needed = identity_of(config.globus, role), needed_scopes(config, role)
    app = open_app(config.globus, role, scopes=needed)
    known = partial(Who, role=who.role, login=who.login, client_id=who.client_id, file=_store(who).filepath)
    if who.login == "client":
        with globus_errors("Asking for tokens", role=role), real_answers(_AUTH):
            app.login(force=True)
    tokens = _facts(app)
    missing = _missing_tokens(tokens, needed)
    if missing:
        return known(tokens=tokens, missing=(*missing, access_hint(role)))
    scopes = [AuthScopes.openid, AuthScopes.profile]
    with (
        globus_errors("Asking who that is", role=role),
        real_answers(_AUTH),
        globus_sdk.AuthClient(app=app, app_scopes=scopes) as client,
    ):
        info = client.userinfo()
        sub = str(info["sub"])
        consents = client.get_consents(sub).to_forest() if _has_dependencies(needed) else None
    for scope in (scope for wanted in needed.values() for scope in wanted):
        for below in scope.dependencies:
            if consents and not consents.meets_scope_requirements(_only(scope, below)):
                missing.append(f"the consent {below.scope_string}")
    return known(
        identity=str(info.get("preferred_username") or sub),
        identity_id=sub,
        tokens=_facts(app),
        missing=(*missing, access_hint(role)) if missing else (),
    )


def nobody(config: SiteConfig, role: Role, why: AuthError) -> Who:
    """Nobody acts in a role, and why."""
    who = identity_of(config.globus, role)
    return Who(role=who.role, login=who.login, client_id=who.client_id, missing=(why.message, why.hint))


def _through(ask: Ask) -> type[CommandLineLoginFlowManager]:
    """The SDK's login at a terminal, with `ask` as the terminal."""

    class Flow(CommandLineLoginFlowManager):
        def print_authorize_url(self, authorize_url: str) -> None:
            self.url = authorize_url

        def prompt_for_code(self) -> str:
            return ask(self.url)

    return Flow


def _store(who: Identity) -> TokenStore:
    store = TokenStore.for_globus_app(who.client_id, APP_NAME, GlobusAppConfig(), "DEFAULT")
    assert isinstance(store, TokenStore)
    return store


def _facts(app: GlobusApp) -> dict[str, TokenFacts]:
    held = app.token_storage.token_storage.get_token_data_by_resource_server()
    return {server: _fact(token, isinstance(app, globus_sdk.ClientApp)) for server, token in held.items()}


def _fact(token: TokenStorageData, renews: bool) -> TokenFacts:
    return TokenFacts(
        scopes=tuple(token.scope.split()),
        lasts_s=int(token.expires_at_seconds - time.time()),
        renews=renews or token.refresh_token is not None,
    )


def _missing_tokens(tokens: dict[str, TokenFacts], needed: dict[str, list[Scope]]) -> list[str]:
    missing = []
    for server, scopes in needed.items():
        held: Iterable[str] = tokens[server].scopes if server in tokens else ()
        missing += [f"the scope {scope.scope_string}" for scope in scopes if scope.scope_string not in held]
        if server in tokens and not tokens[server].renews:
            missing.append(f"a refresh token for {server}")
    return missing


def _has_dependencies(needed: dict[str, list[Scope]]) -> bool:
    return any(scope.dependencies for scopes in needed.values() for scope in scopes)


def _only(scope: Scope, below: Scope) -> Scope:
    return Scope(scope.scope_string).with_dependency(below)
