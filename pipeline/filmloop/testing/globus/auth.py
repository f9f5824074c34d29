"""Globus Auth, emulated: tokens for the application itself."""

from __future__ import annotations

import re

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import AUTH, COMPUTE, TRANSFER, Hub, Token

COMPUTE_SCOPE_ID = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
LASTS_S = 172_800.0


def blueprint(hub: Hub) -> Blueprint:
    """The routes of Globus Auth."""
    routes = Blueprint("auth", __name__)

    @routes.post("/v2/oauth2/token")
    def token() -> Response:
        client_id = request.authorization.username if request.authorization else None
        if not client_id:
            return make_response(jsonify(error="invalid_client"), 401)
        scopes = re.sub(r"\[[^\]]*\]", "", request.form.get("scope", "")).split()
        by_server: dict[str, list[str]] = {}
        for scope in scopes:
            by_server.setdefault(resource_server_of(scope), []).append(scope)
        tokens = [
            hub.new_token(
                identity=client_id, client_id=client_id, resource_server=server, scopes=tuple(asked), lasts_s=LASTS_S
            )
            for server, asked in by_server.items()
        ]
        first, *others = [_document(token) for token in tokens]
        return jsonify(first | {"other_tokens": others})

    @routes.post("/v2/oauth2/token/revoke")
    def revoke() -> Response:
        with hub.lock:
            hub.tokens.pop(request.form.get("token", ""), None)
        return jsonify(active=False)

    @routes.get("/v2/oauth2/userinfo")
    def userinfo() -> Response:
        held = hub.authorize(AUTH)
        name = f"{held.identity}@clients.auth.globus.org"
        return jsonify(sub=held.identity, preferred_username=name, identity_set=[{"sub": held.identity}])

    return routes


def resource_server_of(scope: str) -> str:
    """Whose scope it is."""
    if scope.startswith("urn:globus:auth:scope:"):
        return scope.split(":")[4]
    found = re.fullmatch(r"https://auth\.globus\.org/scopes/([^/]+)/.*", scope)
    if not found:
        return AUTH
    return COMPUTE if found[1] == COMPUTE_SCOPE_ID else found[1]


def _document(token: Token) -> dict[str, object]:
    return {
        "access_token": token.value,
        "scope": " ".join(token.scopes),
        "expires_in": int(LASTS_S),
        "token_type": "Bearer",
        "resource_server": token.resource_server,
    }


__all__ = ["AUTH", "COMPUTE", "TRANSFER", "blueprint", "resource_server_of"]
