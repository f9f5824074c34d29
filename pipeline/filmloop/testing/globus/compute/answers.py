"""Documents that the web API answers with."""

from __future__ import annotations

import uuid
from typing import Any, NoReturn

from flask import abort, jsonify, make_response

from filmloop.testing.globus.compute.book import Endpoint


def refuse(status: int, code: str, reason: str) -> NoReturn:
    """End the request in hand with an error. [choice] Field names as the open-source web service had them, and a code."""
    body = {"status": "Failed", "code": code, "reason": reason, "message": reason, "http_status_code": status}
    abort(make_response(jsonify(body | {"error_args": [reason], "request_id": str(uuid.uuid4())}), status))


def endpoint_document(endpoint: Endpoint) -> dict[str, Any]:
    """[choice] What is said of an endpoint: what it registered, metadata at the top."""
    registered = dict(endpoint.registered)
    metadata = registered.pop("metadata", {})
    return {
        "uuid": endpoint.id,
        "name": endpoint.name,
        "owner": endpoint.owner,
        "multi_user": True,
        **registered,
        **metadata,
    }
