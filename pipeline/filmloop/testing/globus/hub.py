"""What the emulated services share: who holds which token, which faults are to fire, and what was asked."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from flask import Request, abort, jsonify, make_response, request

from filmloop.testing.globus.grants import Book, Grant

AUTH = "auth.globus.org"
TRANSFER = "transfer.api.globus.org"
COMPUTE = "funcx_service"


@dataclass(kw_only=True)
class Fault:
    """Something that is to go wrong: at a place in the code that asks for its name."""

    name: str
    times: int = 1
    """How often it fires; below 0: until it is taken away."""
    skip: int = 0
    """So many occasions pass unharmed first."""
    match: dict[str, Any] = field(default_factory=dict)
    """It fires only where the place says the same of itself, as `route="POST /v0.10/transfer"`."""
    params: dict[str, Any] = field(default_factory=dict)
    fired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token that was given out."""

    value: str = field(repr=False)
    identity: str
    """UUID: the person, or the client itself."""
    client_id: str
    resource_server: str
    scopes: tuple[str, ...]
    expires_at: float
    refresh_token: str | None = field(default=None, repr=False)
    grant: Grant | None = None
    """The login that it comes from, with its session."""


class Hub:
    """State of the emulated services, shared by the threads of their server; hold `lock` to change it.

    Args:
        url: Address of the server, without a slash at its end.
        state: Folder for what a service keeps.
        amqp: Address of the RabbitMQ that Compute uses; '' if there is none.
    """

    def __init__(self, *, url: str, state: Path, amqp: str = "") -> None:
        self.url, self.state, self.amqp = url, state, amqp
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self.tokens: dict[str, Token] = {}
        self.issued: list[str] = []
        """Every secret that was ever given out: tokens, codes, what identifies a person."""
        self.book = Book(self.issued)
        self.lasts_s = 172_800.0
        """How long access tokens last that are given out from now on."""
        self.sign: Callable[[dict[str, Any]], str]
        """Signs who somebody is; Auth's."""

    def reset(self) -> None:
        """Forget faults and counts; tokens and what the services hold stay."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()
            self.log.clear()

    def fault(self, name: str, **place: Any) -> dict[str, Any] | None:
        """The parameters of a fault that is to fire now at this place, counted as fired; None if all is to go well."""
        with self.lock:
            for fault in self.faults:
                if fault.name != name or any(place.get(key) != value for key, value in fault.match.items()):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times == 0:
                    continue
                fault.times -= fault.times > 0
                fault.fired += 1
                return dict(fault.params)
        return None

    def fired(self) -> dict[str, int]:
        """How often each fault fired, by name; one that has not fired counts 0."""
        with self.lock:
            counts: Counter[str] = Counter()
            for fault in self.faults:
                counts[fault.name] += fault.fired
            return dict(counts)

    def new_token(
        self, *, identity: str, client_id: str, resource_server: str, scopes: tuple[str, ...], lasts_s: float,
        refresh_token: str | None = None, grant: Grant | None = None,
    ) -> Token:  # fmt: skip
        """Give an access token out."""
        token = Token(
            value="At" + secrets.token_urlsafe(32),
            identity=identity,
            client_id=client_id,
            resource_server=resource_server,
            scopes=scopes,
            expires_at=time.time() + lasts_s,
            refresh_token=refresh_token,
            grant=grant,
        )
        with self.lock:
            self.tokens[token.value] = token
            self.issued.append(token.value)
        return token

    def token_of(self, asked: Request, resource_server: str) -> Token | None:
        """The valid token that a request bears for a resource server; None: it bears none, or it has expired."""
        scheme, _, value = asked.headers.get("Authorization", "").partition(" ")
        with self.lock:
            token = self.tokens.get(value) if scheme.lower() == "bearer" else None
        if token is None or token.resource_server != resource_server or token.expires_at <= time.time():
            return None
        return token

    def authorize(self, resource_server: str) -> Token:
        """The token of the request in hand; without a valid one the request ends with 401.

        Faults, each with `match={"resource_server": ...}` or `{"route": ...}`: `expired`; `consent_required` with
        `required_scopes`; `session_required` with what the service then asks for, as `session_required_policies`.
        """
        route = f"{request.method} {request.url_rule.rule if request.url_rule else ''}"
        place = {"resource_server": resource_server, "route": route}
        token = self.token_of(request, resource_server)
        if token is None or self.fault("expired", **place) is not None:
            refuse(401, "AuthenticationFailed", "Token is not active")
        consent = self.fault("consent_required", **place)
        if consent is not None:
            self.refuse_consent(list(consent["required_scopes"]))
        session = self.fault("session_required", **place)
        if session is not None:
            self.refuse_session(**session)
        return token

    def require_consent(self, token: Token, scope: str, *dependencies: str) -> None:
        """End the request with 403 ConsentRequired unless the token's client was allowed `scope` with these below it."""
        with self.lock:
            held = self.book.holds(token.identity, token.client_id, scope, *dependencies)
        if not held:
            self.refuse_consent([f"{scope}[{' '.join('*' + name for name in dependencies)}]"])

    def require_session(self, token: Token, *, policies: tuple[str, ...] = (), domains: tuple[str, ...] = ()) -> None:
        """End the request with 403 unless the login that the token comes from met these; applications have none. [choice] for ever."""
        held = token.grant or Grant(identity=token.identity, client_id=token.client_id, scopes=())
        if not held.policies.issuperset(policies):
            self.refuse_session(session_required_policies=list(policies))
        if domains and not held.domains.intersection(domains):
            self.refuse_session(session_required_single_domain=list(domains))

    def refuse_consent(self, required_scopes: list[str]) -> NoReturn:
        """End the request: a consent is missing."""
        refuse(
            403,
            "ConsentRequired",
            "Missing required data_access consent",
            required_scopes=required_scopes,
            authorization_parameters={"required_scopes": required_scopes},
        )

    def refuse_session(self, **needed: Any) -> NoReturn:
        """End the request: the login does not satisfy what the facility asks for. [choice] the code and the message."""
        refuse(
            403,
            "PermissionDenied",
            "Session does not satisfy the authentication policy",
            authorization_parameters={"session_message": "Log in as the facility asks", **needed},
        )


def refuse(status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **fields: Any) -> NoReturn:
    """End the request in hand with an error document as Transfer writes them."""
    body = {"code": code, "message": message, "request_id": secrets.token_hex(5), "resource": request.path, **fields}
    answer = make_response(jsonify(body), status)
    answer.headers.update(headers or {})
    abort(answer)
