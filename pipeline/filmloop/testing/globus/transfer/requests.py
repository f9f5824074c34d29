"""What most routes ask of a request: who it is, and whether they may use a collection."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from flask import g

from filmloop.testing.globus.hub import TRANSFER, Token, refuse
from filmloop.testing.globus.transfer.collection import Collection, RefusedError
from filmloop.testing.globus.transfer.service import Service

SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"


def held(service: Service) -> Token:
    """The token of the request in hand, looked at once."""
    if "token" not in g:
        g.token = service.hub.authorize(TRANSFER)
    return cast(Token, g.token)


def who(service: Service) -> str:
    """The identity that asks."""
    return held(service).identity


def collection_for(service: Service, collection_id: str) -> Collection:
    """A collection that the one who asks has consented to use and has a fresh enough session for."""
    token = held(service)
    found = service.collections.get(str(collection_id))
    if found is None:
        refuse(404, "EndpointNotFound", f"No such endpoint '{collection_id}'")
    if found.kind == "mapped":
        service.hub.require_consent(token, SCOPE, f"https://auth.globus.org/scopes/{found.id}/data_access")
    service.hub.require_session(token, policies=tuple(found.policies), domains=tuple(found.domains))
    return found


def refused(exc: RefusedError, collection: Collection) -> NoReturn:
    """End a file operation that the collection refuses."""
    if exc.code == "PERMISSION_DENIED":
        refuse(403, "EndpointPermissionDenied", f"Denied by endpoint {collection.name} ({collection.id})\n{exc}")
    if exc.code == "FILE_NOT_FOUND":
        refuse(404, "NotFound", f"Path not found\nEndpoint: {collection.name} ({collection.id})\n{exc.details}")
    refuse(502, f"ExternalError.{exc.code}", str(exc))


def page_of(service: Service, lines: list[Any], marker: str | None) -> dict[str, Any]:
    """One page of results by a marker, which is where the page begins."""
    begin = int(marker or 0)
    size = service.settings.page
    end = begin + size
    return {"marker": begin, "next_marker": end if end < len(lines) else None, "DATA": lines[begin:end]}
