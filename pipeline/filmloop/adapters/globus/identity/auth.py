"""Who the site is at Globus: an application with a secret, or a person who logged in.

Nothing here prompts or dials out: apps ask for tokens when a client first needs one. An app is not made for several
threads: each opens its own, which costs nothing but reading a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn
from uuid import UUID

import globus_sdk
from globus_sdk import ClientApp, GlobusApp, GlobusAppConfig, UserApp
from globus_sdk.config import get_environment_name, get_http_timeout, get_service_url
from globus_sdk.gare import GlobusAuthorizationParameters
from globus_sdk.globus_app.protocols import LoginFlowManagerProvider
from globus_sdk.login_flows import LoginFlowManager
from globus_sdk.scopes import AuthScopes, ComputeScopes, GCSCollectionScopes, Scope, TransferScopes
from globus_sdk.token_storage import MemoryTokenStorage, TokenStorage

from filmloop.adapters.globus.bounded import UNBOUNDED, BoundedTransport, Bounds, bounded_retries
from filmloop.adapters.globus.errors import globus_errors
from filmloop.adapters.globus.identity.tokenstore import TokenStore
from filmloop.adapters.globus.identity.who import Identity, Role, identity_of, login_command, remember_identity
from filmloop.config.globus import Collection, GlobusSection
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import AuthError, ConfigError, FilmloopError
from filmloop.core.nodump import forbid_core_dumps

__all__ = ["Role", "data_access", "needed_scopes", "open_app"]

_logger = logging.getLogger(__name__)
_TIMEOUT_S = 30.0

APP_NAME = "filmloop"
"""The SDK names the folder of the tokens after it."""


def open_app(
    section: GlobusSection,
    role: Role = "data",
    *,
    scopes: Mapping[str, Iterable[Scope]] | None = None,
    login_flow: LoginFlowManagerProvider | None = None,
    bounds: Bounds = UNBOUNDED,
) -> GlobusApp:
    """The SDK's app of the site's identity. It never prompts: what only a person can do is an `AuthError`.

    Its tokens are in the SDK's own file, `~/.globus/app/<client_id>/filmloop/tokens.json`, and are renewed by
    themselves. Its process leaves no core dump from now on.

    Args:
        section: Who that is.
        role: `weights` may be another identity, with a budget of its own.
        scopes: What is needed, by resource server, beyond what clients that are given the app ask for.
        login_flow: How a person logs in; only `filmloop login` has one.
        bounds: What is left for it; to ask for tokens, too, is a request.

    Raises:
        ConfigError: the site file names no client, or the environment no such Globus.
        AuthError: the secret is not in the environment, or the file of tokens cannot be used.
    """
    who = identity_of(section, role)
    if not who.client_id:
        raise ConfigError(
            "[globus] names no client_id.",
            hint="Register an application at https://app.globus.org/settings/developers and write its id there.",
        )
    _check_environment()
    remember_identity(role, who)
    forbid_core_dumps()
    needed = {server: list(wanted) for server, wanted in (scopes or {}).items()}
    with globus_errors("Opening the tokens", role=role):
        if who.login == "client":
            return ClientApp(
                APP_NAME,
                login_client=globus_sdk.ConfidentialAppAuthClient(who.client_id, _secret(who), **_patience(bounds)),
                scope_requirements=needed,
                config=GlobusAppConfig(token_storage=_RenewableTokens, auto_redrive_gares=True),
            )
        return UserApp(
            APP_NAME,
            login_client=globus_sdk.NativeAppAuthClient(who.client_id, **_patience(bounds)),
            scope_requirements=needed,
            config=GlobusAppConfig(
                token_storage=TokenStore,
                request_refresh_tokens=True,
                token_validation_error_handler=None,
                login_flow_manager=login_flow or Unattended,
            ),
        )


def needed_scopes(config: SiteConfig, role: Role = "data") -> dict[str, list[Scope]]:
    """All that a site's parts ask for in a role, so that one login is enough."""
    needed: dict[str, list[Scope]] = {AuthScopes.resource_server: [AuthScopes.openid, AuthScopes.profile]}
    if config.mover.kind == "globus":
        needed[TransferScopes.resource_server] = [data_access(config.mover.edge, config.mover.cluster)]
    if config.launcher.kind == "globus" and role == "data":
        needed[ComputeScopes.resource_server] = [ComputeScopes.all]
        needed[AuthScopes.resource_server].append(AuthScopes.manage_projects)
    return needed


def data_access(*collections: Collection) -> Scope:
    """Transfer's scope, with the consent that mapped collections ask for; guest collections have no such thing."""
    return TransferScopes.all.with_dependencies(
        GCSCollectionScopes(found.collection).data_access.with_optional(True)
        for found in collections
        if found.mapped and found.collection
    )


class Unattended(LoginFlowManager):
    """The login of a process that nobody sits at: it fails, with the command that a person has to run."""

    @classmethod
    def for_globus_app(cls, app_name: str, login_client: globus_sdk.AuthLoginClient, config: Any) -> Unattended:
        """See `LoginFlowManagerProvider`."""
        return cls(login_client)

    def run_login_flow(self, auth_parameters: GlobusAuthorizationParameters) -> NoReturn:
        """See `LoginFlowManager`.

        Raises:
            AuthError: always.
        """
        raise AuthError("Globus asks for a login.", hint=f"Run `{login_command()}` on a terminal.")


class _RenewableTokens(TokenStore):
    """An application's tokens are kept to save requests: where they cannot be kept, it asks for new ones."""

    renewable = True

    @classmethod
    def for_globus_app(
        cls, client_id: UUID | str, app_name: str, config: GlobusAppConfig, namespace: str
    ) -> TokenStorage:
        """See `FileTokenStorage.for_globus_app`."""
        try:
            return super().for_globus_app(client_id, app_name, config, namespace)
        except FilmloopError as exc:
            _logger.warning("tokens are kept in memory only: %s", exc.message)
            return MemoryTokenStorage(namespace=namespace)


def _patience(bounds: Bounds) -> dict[str, Any]:
    """A hung or broken token service ends a request after one and a half minutes; the caller asks again by itself."""
    timeout_s = get_http_timeout() if os.environ.get("GLOBUS_SDK_HTTP_TIMEOUT") else _TIMEOUT_S
    return {"transport": BoundedTransport(timeout_s, bounds), "retry_config": bounded_retries(2, bounds)}


def _secret(who: Identity) -> str:
    found = os.environ.get(who.secret_name, "")
    if not found:
        raise AuthError(
            f"{who.secret_name} is not in the environment: the secret of the client {who.client_id}.",
            hint="A unit of systemd takes it from an EnvironmentFile with mode 0600; "
            'a person logs in with login = "user" and `filmloop login`.',
            ids={"client_id": who.client_id},
        )
    return found


def _check_environment() -> None:
    try:
        get_service_url("auth", environment=get_environment_name())
    except ValueError as exc:
        raise ConfigError(f"GLOBUS_SDK_ENVIRONMENT: {exc}.", hint="Unset it for the real Globus.") from exc
