"""Collections as documents, and the access lists of guest collections."""

from __future__ import annotations

import uuid
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import refuse
from filmloop.testing.globus.transfer.collection import Collection, Rule
from filmloop.testing.globus.transfer.requests import who
from filmloop.testing.globus.transfer.service import Service


def add(routes: Blueprint, service: Service) -> None:
    """Endpoint documents and access rules."""

    @routes.get("/v0.10/endpoint/<collection_id>")
    def endpoint(collection_id: str) -> Response:
        return jsonify(_document(_known(service, collection_id)))

    @routes.get("/v0.10/endpoint/<collection_id>/access_list")
    def access_list(collection_id: str) -> Response:
        found = _known(service, collection_id)
        lines = [_access(rule) for rule in found.rules or ()]
        return jsonify(DATA_TYPE="access_list", DATA=lines, endpoint=found.id, length=len(lines))

    @routes.post("/v0.10/endpoint/<collection_id>/access")
    def add_rule(collection_id: str) -> Response:
        found, asked = _known(service, collection_id), request.get_json()
        rule = Rule(
            id=str(uuid.uuid4()),
            principal=asked.get("principal") or "*",
            path=asked["path"],
            permissions=asked["permissions"],
        )
        with service.hub.lock:
            found.rules = [*(found.rules or ()), rule]
            service.add(found)
        body = {"DATA_TYPE": "access_create_result", "code": "Created", "access_id": rule.id, "message": "Created"}
        return make_response(jsonify(body), 201)

    @routes.delete("/v0.10/endpoint/<collection_id>/access/<rule_id>")
    def drop_rule(collection_id: str, rule_id: str) -> Response:
        found = _known(service, collection_id)
        with service.hub.lock:
            if rule_id not in {rule.id for rule in found.rules or ()}:
                refuse(404, "AccessRuleNotFound", f"No access rule '{rule_id}'")
            found.rules = [rule for rule in found.rules or () if rule.id != rule_id]
            service.add(found)
        return jsonify(DATA_TYPE="result", code="Deleted", message="Access rule deleted")


def _known(service: Service, collection_id: str) -> Collection:
    who(service)
    found = service.collections.get(collection_id)
    if found is None:
        refuse(404, "EndpointNotFound", f"No such endpoint '{collection_id}'")
    return found


def _access(rule: Rule) -> dict[str, Any]:
    everybody = rule.principal == "*"
    return {
        "DATA_TYPE": "access",
        "id": rule.id,
        "principal_type": "all_authenticated_users" if everybody else "identity",
        "principal": "" if everybody else rule.principal,
        "path": rule.path,
        "permissions": rule.permissions,
        "role_id": None,
        "expiration_date": None,
    }


def _document(found: Collection) -> dict[str, Any]:
    guest = found.kind == "guest"
    return {
        "DATA_TYPE": "endpoint",
        "id": found.id,
        "display_name": found.name or found.id,
        "canonical_name": found.id,
        "entity_type": f"GCSv5_{found.kind}_collection",
        "acl_available": guest,
        "acl_editable": guest,
        "activated": True,
        "default_directory": "/",
        "disable_verify": False,
        "force_verify": False,
        "force_encryption": False,
        "gcp_connected": None,
        "gcp_paused": None,
        "high_assurance": False,
        "host_path": None,
        "non_functional": False,
        "public": False,
        "subscription_id": None,
        "DATA": [],
    }
