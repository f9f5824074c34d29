"""Answers that get lost or spoilt after the request was executed."""

from __future__ import annotations

import socket
import time

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import Hub


def spoil(routes: Blueprint, hub: Hub) -> None:
    """Let these faults fire on requests that were executed, each with `match={"route": "POST /v0.10/transfer"}`.

    - `gateway`: a 502, or another `status`, with `headers`, instead of the answer
    - `cut_body`: the connection breaks in the middle of the answer
    - `late`: the answer comes after `seconds`
    """

    @routes.after_request
    def after(answer: Response) -> Response:
        route = f"{request.method} {request.url_rule.rule}" if request.url_rule else ""
        if route.split(" ")[-1].startswith("/control/"):
            return answer
        late = hub.fault("late", route=route)
        if late is not None:
            time.sleep(float(late["seconds"]))
        gateway = hub.fault("gateway", route=route)
        if gateway is not None:
            body = jsonify(code="ServiceUnavailable", message="Bad gateway", resource=request.path)
            return make_response(body, gateway.get("status", 502), gateway.get("headers", {}))
        if hub.fault("cut_body", route=route) is not None:
            whole = answer.get_data()
            answer.set_data(whole[: len(whole) // 2])
            answer.headers["Content-Length"] = str(len(whole))
            line = request.environ["werkzeug.socket"]
            answer.call_on_close(lambda: line.shutdown(socket.SHUT_RDWR))
        return answer
