"""The emulator's own routes, below /control/, and the faults that any route can have."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request

from filmloop.testing.globus.hub import Fault, Hub, refuse


def blueprint(hub: Hub) -> Blueprint:
    """Faults, counts, reset."""
    routes = Blueprint("control", __name__, url_prefix="/control")

    @routes.get("/health")
    def health() -> Response:
        return jsonify(ok=True)

    @routes.post("/faults")
    def add_fault() -> Response:
        with hub.lock:
            hub.faults.append(Fault(**request.get_json()))
        return jsonify(ok=True)

    @routes.delete("/faults")
    def drop_faults() -> Response:
        name = request.args.get("name")
        with hub.lock:
            for fault in hub.faults:
                if name in (None, fault.name):
                    fault.times = 0
        return jsonify(ok=True)

    @routes.get("/state")
    def state() -> Response:
        with hub.lock:
            return jsonify(
                faults=[asdict(fault) for fault in hub.faults],
                fired=hub.fired(),
                counts=dict(hub.requests),
                log=hub.log,
            )

    @routes.post("/reset")
    def reset() -> Response:
        hub.reset()
        return jsonify(ok=True)

    return routes


def watch(app: Flask, hub: Hub) -> None:
    """Count every request by its route, and let these faults fire on it, each with `match={"route": "GET /x/<id>"}`.

    - `refuse`: answered with `status`, `code`, `message`, `headers`, `body`, and not executed
    - `slow`: executed after `seconds`
    - `cut`: the connection breaks before it is executed
    - `lose_answer`: executed, and then the connection breaks
    """

    @app.before_request
    def before() -> Any:
        route = _route()
        if route is None:
            return None
        with hub.lock:
            hub.requests[route] += 1
        if hub.fault("cut", route=route) is not None:
            _break()
            return "", 500
        slow = hub.fault("slow", route=route)
        if slow is not None:
            time.sleep(float(slow["seconds"]))
        refused = hub.fault("refuse", route=route)
        if refused is not None:
            refuse(
                int(refused.get("status", 503)),
                refused.get("code", "ServiceUnavailable"),
                refused.get("message", "an injected fault"),
                refused.get("headers"),
                **refused.get("body", {}),
            )
        return None

    @app.after_request
    def after(answer: Response) -> Response:
        route = _route()
        if route is not None:
            with hub.lock:
                hub.log.append(
                    {
                        "time": time.time(),
                        "route": route,
                        "path": request.full_path,
                        "status": answer.status_code,
                        "bytes": request.content_length or 0,
                    }
                )
            if hub.fault("lose_answer", route=route) is not None:
                _break()
        return answer


def _route() -> str | None:
    rule = request.url_rule.rule if request.url_rule else "unknown " + request.path
    return None if rule.startswith("/control/") else f"{request.method} {rule}"


def _break() -> None:
    request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
