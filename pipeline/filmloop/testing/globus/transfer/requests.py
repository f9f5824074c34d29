"""What most routes ask of a request: who it is, and whether they may use a collection."""

from __future__ import annotations

from typing import Any

from filmloop.testing.globus.hub import TRANSFER, refuse
from filmloop.testing.globus.transfer.collection import Collection, RefusedError
from filmloop.testing.globus.transfer.service import Service

SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"


def who(service: Service) -> str:
    """The identity that asks."""
    return service.hub.authorize(TRANSFER).identity


def collection_for(service: Service, collection_id: str) -> Collection:
    """A collection that the one who asks has consented to use and has a fresh enough session for.

    Faults, with `match` on `collection`: `consent_required`, and `session_required` with `policies`, `domains`, `mfa`.
    """
    token = service.hub.authorize(TRANSFER)
    found = service.collections.get(str(collection_id))
    if found is None:
        refuse(404, "EndpointNotFound", f"No such endpoint '{collection_id}'")
        raise AssertionError
    needed = f"https://auth.globus.org/scopes/{found.id}/data_access"
    lacks = found.kind == "mapped" and not any(needed in scope for scope in token.scopes)
    if lacks or service.hub.fault("consent_required", collection=found.id) is not None:
        scopes = [f"{SCOPE}[*{needed}]"]
        refuse(
            403,
            "ConsentRequired",
            f"Missing required data_access consent for {found.id}",
            required_scopes=scopes,
            authorization_parameters={"required_scopes": scopes, "session_message": "Missing required consent"},
        )
    session = service.hub.fault("session_required", collection=found.id)
    if session is not None:
        parameters: dict[str, Any] = {"session_message": "A fresh login is required"}
        for name, key in (
            ("policies", "session_required_policies"),
            ("domains", "session_required_single_domain"),
            ("mfa", "session_required_mfa"),
        ):
            if name in session:
                parameters[key] = session[name]
        refuse(403, "AuthorizationRequired", "A fresh login is required", authorization_parameters=parameters)
    return found


def refused(exc: RefusedError, collection: Collection) -> Any:
    """End a file operation that the collection refuses."""
    if exc.code == "PERMISSION_DENIED":
        return refuse(403, "EndpointPermissionDenied", f"Denied by endpoint {collection.name} ({collection.id})\n{exc}")
    if exc.code == "FILE_NOT_FOUND":
        return refuse(404, "NotFound", f"Path not found\nEndpoint: {collection.name} ({collection.id})\n{exc.details}")
    return refuse(502, f"ExternalError.{exc.code}", str(exc))


def page_of(service: Service, lines: list[Any], marker: str | None) -> dict[str, Any]:
    """One page of results by a marker, which is where the page begins."""
    begin = int(marker or 0)
    size = service.settings.page
    end = begin + size
    return {"marker": begin, "next_marker": end if end < len(lines) else None, "DATA": lines[begin:end]}
