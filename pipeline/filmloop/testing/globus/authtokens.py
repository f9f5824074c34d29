"""How the emulated Globus Auth gives tokens out: to an application, for a code, for a refresh token."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from typing import NoReturn

from flask import Response, abort, jsonify, make_response, request
from globus_sdk.scopes import Scope, ScopeParser

from filmloop.testing.globus.grants import Grant
from filmloop.testing.globus.hub import AUTH, COMPUTE, Hub, Token

COMPUTE_SCOPE_ID = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"


def client_credentials(hub: Hub) -> Response:
    """Tokens for the application itself."""
    client_id = client_of(hub, confidential=True)
    scopes = scopes_of(hub, request.form.get("scope", ""))
    grant = hub.book.new_grant(
        identity=client_id, client_id=client_id, scopes=tuple(scope.scope_string for scope in scopes)
    )
    return _tokens(hub, grant, scopes)


def exchange(hub: Hub) -> Response:
    """Tokens for the code that a person brought. [choice] 401 for a wrong one."""
    client_id = client_of(hub)
    code = hub.book.codes.pop(request.form.get("code", ""), None)
    verifier = hashlib.sha256(request.form.get("code_verifier", "").encode()).digest()
    if (
        code is None
        or code.expires_at < time.time()
        or code.grant.client_id != client_id
        or code.redirect_uri != request.form.get("redirect_uri")
        or code.challenge != base64.urlsafe_b64encode(verifier).decode().rstrip("=")
    ):
        oauth_error(401, "invalid_grant")
    return _tokens(hub, code.grant, code.scopes, state=code.state)


def refresh(hub: Hub) -> Response:
    """A new access token; the refresh token stays the same. [choice] 400 for one that was revoked, no id_token."""
    client_id = client_of(hub)
    value = request.form.get("refresh_token", "")
    found = hub.book.refreshes.get(value)
    if found is None or found.grant.client_id != client_id or hub.fault("refresh_revoked") is not None:
        oauth_error(400, "invalid_grant")
    token = _new(hub, found.grant, found.resource_server, found.scopes, value)
    return jsonify(_document(hub, token) | {"other_tokens": []})


def _tokens(hub: Hub, grant: Grant, scopes: tuple[Scope, ...], state: str = "") -> Response:
    """Give out tokens of each resource server, and remember the consents."""
    hub.book.consent(grant.identity, grant.client_id, scopes)
    by_server: dict[str, list[str]] = {}
    for scope in scopes:
        by_server.setdefault(resource_server_of(scope.scope_string), []).append(scope.scope_string)
    if not by_server:
        oauth_error(400, "invalid_scope")
    documents = []
    for server, names in by_server.items():
        refresh = hub.book.new_refresh(grant, server, tuple(names)) if grant.offline else None
        documents.append(_document(hub, _new(hub, grant, server, tuple(names), refresh)))
    first, *others = documents
    answer = first | {"other_tokens": others} | ({"state": state} if state else {})
    if any(scope.scope_string == "openid" for scope in scopes):
        answer["id_token"] = hub.sign(
            {
                "sub": grant.identity,
                "aud": grant.client_id,
                "iss": hub.url,
                "iat": int(time.time()),
                "exp": int(time.time() + 3600),
            }
        )
        hub.issued.append(str(answer["id_token"]))
    return jsonify(answer)


def _new(hub: Hub, grant: Grant, server: str, scopes: tuple[str, ...], refresh: str | None) -> Token:
    return hub.new_token(
        identity=grant.identity,
        client_id=grant.client_id,
        resource_server=server,
        scopes=scopes,
        lasts_s=hub.lasts_s,
        refresh_token=refresh,
        grant=grant,
    )


def _document(hub: Hub, token: Token) -> dict[str, object]:
    found: dict[str, object] = {
        "access_token": token.value,
        "scope": " ".join(token.scopes),
        "expires_in": int(hub.lasts_s),
        "token_type": "Bearer",
        "resource_server": token.resource_server,
    }
    return found | ({"refresh_token": token.refresh_token} if token.refresh_token else {})


def scopes_of(hub: Hub, text: str) -> tuple[Scope, ...]:
    """What is asked for; `data_access` of a guest collection does not exist. [choice] the status; no client's limits."""
    scopes = tuple(ScopeParser.parse(text)) if text else ()
    for scope in scopes:
        for below in scope.dependencies:
            collection = re.fullmatch(r"https://auth\.globus\.org/scopes/([^/]+)/data_access", below.scope_string)
            if collection and collection[1] in hub.book.guest_collections:
                detail = f"{below.scope_string} is not a known scope"
                body = {"errors": [{"status": "400", "code": "UNKNOWN_SCOPE_ERROR", "detail": detail}]}
                abort(make_response(jsonify(body | {"error": "unknown_scope"}), 400))
    return scopes


def client_of(hub: Hub, *, confidential: bool = False) -> str:
    """Who asks: an application with its secret, or a native one by its id alone. [choice] the first secret counts."""
    given = request.authorization
    if given is not None and given.type == "basic" and given.username:
        known = hub.book.secrets.setdefault(given.username, given.password or "")
        if known != given.password or hub.fault("bad_secret") is not None:
            oauth_error(401, "invalid_client")
        return given.username
    client_id = request.form.get("client_id", "")
    if confidential or not client_id:
        oauth_error(401, "invalid_client")
    return client_id


def resource_server_of(scope: str) -> str:
    """Whose scope it is."""
    if scope.startswith("urn:globus:auth:scope:"):
        return scope.split(":")[4]
    found = re.fullmatch(r"https://auth\.globus\.org/scopes/([^/]+)/.*", scope)
    if not found:
        return AUTH
    return COMPUTE if found[1] == COMPUTE_SCOPE_ID else found[1]


def oauth_error(status: int, error: str) -> NoReturn:
    """End the request as OAuth2 says errors."""
    abort(make_response(jsonify(error=error), status))
