"""Globus Auth, emulated: tokens, logins, consents, who somebody is."""

from __future__ import annotations

import secrets
import time
from typing import Any, NoReturn

from flask import Blueprint, Response, abort, jsonify, make_response, redirect, request

from filmloop.testing.globus.authkey import Key
from filmloop.testing.globus.authtokens import client_credentials, client_of, exchange, oauth_error, refresh, scopes_of
from filmloop.testing.globus.grants import PERSON, Code, Person
from filmloop.testing.globus.hub import AUTH, Hub, Token

CODE_LASTS_S = 600.0


def blueprint(hub: Hub) -> Blueprint:
    """The routes of Globus Auth."""
    routes = Blueprint("auth", __name__)
    for part in (_token_routes, _login_routes, _people_routes, _control_routes):
        part(routes, hub)
    return routes


def _token_routes(routes: Blueprint, hub: Hub) -> None:
    grants = {"client_credentials": client_credentials, "authorization_code": exchange, "refresh_token": refresh}

    @routes.post("/v2/oauth2/token")
    def token() -> Response:
        with hub.lock:
            grant = grants.get(request.form.get("grant_type", ""))
            return grant(hub) if grant else oauth_error(400, "unsupported_grant_type")

    @routes.post("/v2/oauth2/token/revoke")
    def revoke() -> Response:
        client_of(hub)
        value = request.form.get("token", "")
        with hub.lock:  # [choice] access tokens end with their refresh token
            hub.tokens.pop(value, None)
            if hub.book.refreshes.pop(value, None) is not None:
                for token in [found for found in hub.tokens.values() if found.refresh_token == value]:
                    del hub.tokens[token.value]
        return jsonify(active=False)

    @routes.post("/v2/oauth2/token/introspect")
    def introspect() -> Response:
        client_of(hub)
        with hub.lock:
            found = hub.tokens.get(request.form.get("token", ""))
        if found is None or found.expires_at <= time.time():
            return jsonify(active=False)
        return jsonify(
            active=True,
            token_type="Bearer",
            scope=" ".join(found.scopes),
            client_id=found.client_id,
            sub=found.identity,
            username=_person(hub, found.identity).username,
            exp=int(found.expires_at),
            aud=[found.resource_server, found.client_id],
            iss=hub.url,
        )


def _login_routes(routes: Blueprint, hub: Hub) -> None:
    key = Key()

    @routes.get("/.well-known/openid-configuration")
    def openid_configuration() -> Response:
        return jsonify(
            issuer=hub.url,
            authorization_endpoint=hub.url + "/v2/oauth2/authorize",
            token_endpoint=hub.url + "/v2/oauth2/token",
            jwks_uri=hub.url + "/jwk.json",
            id_token_signing_alg_values_supported=["RS512"],
        )

    @routes.get("/jwk.json")
    def jwk() -> Response:
        return jsonify(keys=[key.public()])

    hub.sign = key.sign

    @routes.get("/v2/oauth2/authorize")
    def authorize() -> Any:
        """What a browser does once the person has logged in and agreed: go on to the page with the code. [choice] at once."""
        asked = request.args
        back = asked["redirect_uri"]
        if hub.fault("deny_login") is not None:
            return redirect(f"{back}?error=access_denied&state={asked.get('state', '')}")
        with hub.lock:
            person = _person(hub, asked.get("as", PERSON))
            scopes = scopes_of(hub, asked["scope"])
            grant = hub.book.new_grant(
                identity=person.sub,
                client_id=asked["client_id"],
                scopes=tuple(scope.scope_string for scope in scopes),
                offline=asked.get("access_type") == "offline",
                policies=frozenset(_split(asked.get("session_required_policies"))),
                domains=frozenset(_split(asked.get("session_required_single_domain"))),
            )
            code = secrets.token_urlsafe(22)
            hub.issued.append(code)
            hub.book.codes[code] = Code(
                grant=grant,
                scopes=scopes,
                redirect_uri=back,
                challenge=asked["code_challenge"],
                expires_at=time.time() + CODE_LASTS_S,
                state=asked.get("state", ""),
            )
        return redirect(f"{back}?code={code}&state={asked.get('state', '')}")

    @routes.get("/v2/web/auth-code")
    def auth_code() -> str:
        return f"<html><body><p>Authorization code</p><code>{request.args.get('code', '')}</code></body></html>"


def _people_routes(routes: Blueprint, hub: Hub) -> None:
    @routes.get("/v2/oauth2/userinfo")
    def userinfo() -> Response:
        held = _held(hub)
        person = _person(hub, held.identity)
        more = {"preferred_username": person.username, "name": person.name} if "profile" in held.scopes else {}
        return jsonify(sub=person.sub, identity_set=[{"sub": person.sub, "username": person.username}], **more)

    @routes.get("/v2/api/identities")
    def identities() -> Response:
        held = _held(hub) if request.authorization and request.authorization.type == "bearer" else None
        if held is None:
            client_of(hub)
        ids, names = _split(request.args.get("ids")), _split(request.args.get("usernames"))
        with hub.lock:
            found = [_person(hub, sub) for sub in ids]
            found += [person for person in hub.book.people.values() if person.username in names]
        return jsonify(identities=[_identity(person) for person in found])

    @routes.get("/v2/api/identities/<identity_id>/consents")
    def consents(identity_id: str) -> Response:
        held = _held(hub)
        if held.identity != identity_id:
            _auth_error(403, "FORBIDDEN", "Consents of somebody else")
        with hub.lock:
            found = [
                consent.document()
                for consent in hub.book.consents
                if (consent.identity, consent.client_id) == (identity_id, held.client_id)
            ]
        return jsonify(consents=found)


def _control_routes(routes: Blueprint, hub: Hub) -> None:
    @routes.post("/control/auth/<action>")
    def control(action: str) -> Response:
        asked = request.get_json()
        with hub.lock:
            if action == "lasts":
                hub.lasts_s = float(asked["seconds"])
            elif action == "secret":
                hub.book.secrets[asked["client_id"]] = asked["secret"]
            elif action == "person":
                hub.book.people[asked["sub"]] = Person(**asked)
            elif action == "expire":
                hub.tokens.clear()
            elif action == "revoke":
                hub.book.refreshes.clear()
            elif action == "withdraw":
                return jsonify(count=hub.book.withdraw(asked["scope"], asked.get("identity", "")))
            elif action == "guest":
                hub.book.guest_collections.update(asked["collections"])
            else:
                abort(404)
        return jsonify(ok=True)

    @routes.get("/control/auth/state")
    def state() -> Response:
        with hub.lock:
            return jsonify(
                access_tokens=[
                    {"value": found.value, "resource_server": found.resource_server, "identity": found.identity}
                    for found in hub.tokens.values()
                ],
                refresh_tokens=list(hub.book.refreshes),
                issued=hub.issued,
                consents=[found.document() for found in hub.book.consents],
                sessions=[
                    {"identity": found.identity, "policies": sorted(found.policies), "domains": sorted(found.domains)}
                    for found in hub.book.grants
                ],
            )


def _held(hub: Hub) -> Token:
    token = hub.token_of(request, AUTH)
    if token is None:
        _auth_error(401, "UNAUTHORIZED", "Call must be authenticated")
    return token


def _person(hub: Hub, sub: str) -> Person:
    """Somebody; an identity that nobody made is an application's."""
    found = hub.book.people.get(sub)
    return found or Person(sub=sub, username=f"{sub}@clients.auth.globus.org", name="An application", email="")


def _identity(person: Person) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": person.sub, "username": person.username, "name": person.name, "email": person.email}
    return fields | {"status": "used", "organization": None, "identity_provider": None, "identity_type": "login"}


def _split(text: str | None) -> list[str]:
    return [part for part in (text or "").split(",") if part]


def _auth_error(status: int, code: str, detail: str) -> NoReturn:
    error = {"status": str(status), "code": code, "title": code.title(), "detail": detail, "id": secrets.token_hex(8)}
    abort(make_response(jsonify(errors=[error]), status))
