"""What people and applications have allowed, in the emulated Globus Auth: grants, sessions, consents."""

from __future__ import annotations

import itertools
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from globus_sdk.scopes import Scope

PERSON = "aaaaaaaa-0000-4000-8000-000000000001"
"""Who sits at the browser unless a test says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """An identity that can log in."""

    sub: str = PERSON
    username: str = "operator@facility.example"
    name: str = "Operator"
    email: str = "operator@facility.example"
    domains: tuple[str, ...] = ()
    """Identity providers whose login this person can make."""


@dataclass(kw_only=True)
class Grant:
    """What one login, or one application, holds: all its tokens hang on it."""

    identity: str
    client_id: str
    scopes: tuple[str, ...]
    offline: bool = False
    """Refresh tokens were asked for."""
    policies: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    authenticated_at: float = field(default_factory=time.time)
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """A refresh token: of one resource server."""

    grant: Grant
    resource_server: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An authorization code that waits to be exchanged, once, within ten minutes."""

    grant: Grant
    scopes: tuple[Scope, ...]
    redirect_uri: str
    challenge: str
    expires_at: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """That a client may use a scope, on the way of `path` from the first."""

    number: int
    identity: str
    client_id: str
    scope: str
    path: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """As the consents route writes it."""
        day = "2026-01-01T00:00:00.000000+00:00"
        return {
            "id": self.number,
            "client": self.client_id,
            "scope": str(uuid.uuid5(uuid.NAMESPACE_URL, self.scope)),
            "scope_name": self.scope,
            "effective_identity": self.identity,
            "dependency_path": list(self.path),
            "created": day,
            "updated": day,
            "last_used": day,
            "status": "approved",
            "allows_refresh": True,
            "auto_approved": False,
            "atomically_revocable": len(self.path) > 1,
        }


class Book:
    """Everything that Auth remembers; the hub's lock guards it."""

    def __init__(self, issued: list[str]) -> None:
        self._issued = issued
        self.people: dict[str, Person] = {PERSON: Person()}
        self.secrets: dict[str, str] = {}
        self.codes: dict[str, Code] = {}
        self.refreshes: dict[str, Refresh] = {}
        self.grants: list[Grant] = []
        self.consents: list[Consent] = []
        self.guest_collections: set[str] = set()
        """Asking for their `data_access` is an unknown scope."""
        self._numbers = itertools.count(1)

    def new_grant(self, **of: Any) -> Grant:
        """A login, or an application's own."""
        grant = Grant(**of)
        self.grants.append(grant)
        return grant

    def new_refresh(self, grant: Grant, resource_server: str, scopes: tuple[str, ...]) -> str:
        """A refresh token."""
        value = "Ag" + secrets.token_urlsafe(32)
        self.refreshes[value] = Refresh(grant=grant, resource_server=resource_server, scopes=scopes)
        self._issued.append(value)
        return value

    def consent(self, identity: str, client_id: str, scopes: tuple[Scope, ...]) -> None:
        """Allow a client these scopes and what they depend on."""
        for scope in scopes:
            self._consent(identity, client_id, scope, ())

    def holds(self, identity: str, client_id: str, scope: str, *dependencies: str) -> bool:
        """Whether a client was allowed a scope, and that with these dependencies directly below it."""
        roots = [found for found in self._of(identity, client_id) if found.scope == scope and len(found.path) == 1]
        below = {found.scope for found in self.consents for root in roots if found.path[:-1] == root.path}
        return bool(roots) and below.issuperset(dependencies)

    def withdraw(self, scope: str, identity: str = "") -> int:
        """Take a consent away with all below it; '' is from everybody. Returns how many went. [choice] tokens stay valid."""
        gone = {
            found.number for found in self.consents if found.scope == scope and identity in ("", found.identity)
        }  # fmt: skip
        before = len(self.consents)
        self.consents = [found for found in self.consents if not gone.intersection(found.path)]
        return before - len(self.consents)

    def _of(self, identity: str, client_id: str) -> list[Consent]:
        return [found for found in self.consents if (found.identity, found.client_id) == (identity, client_id)]

    def _consent(self, identity: str, client_id: str, scope: Scope, path: tuple[int, ...]) -> None:
        for found in self._of(identity, client_id):
            if found.scope == scope.scope_string and found.path[:-1] == path:
                break
        else:
            number = next(self._numbers)
            found = Consent(
                number=number, identity=identity, client_id=client_id, scope=scope.scope_string, path=(*path, number)
            )
            self.consents.append(found)
        for below in scope.dependencies:
            self._consent(identity, client_id, below, found.path)
