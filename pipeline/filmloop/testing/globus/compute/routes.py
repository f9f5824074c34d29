"""The routes of the web API that the SDK and the endpoint use."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pika
from flask import Blueprint, Response, jsonify, request

from filmloop.testing.globus.compute.answers import endpoint_document, refuse
from filmloop.testing.globus.compute.book import Book, Endpoint, Function
from filmloop.testing.globus.compute.queues import HEARTBEATS, PREFIX, Queues, command_queue
from filmloop.testing.globus.compute.router import Router
from filmloop.testing.globus.compute.submit import MAX_BODY_BYTES, submit_tasks
from filmloop.testing.globus.hub import COMPUTE, Hub

LOCK_S = 30.0
"""[choice] A stopped endpoint cannot register for so long."""


def blueprint(hub: Hub) -> Blueprint:
    """Routes and, where there is a broker, the thread that routes messages."""
    routes = Blueprint("compute", __name__)
    book, queues = Book(hub.state / "compute"), Queues(hub.amqp)
    if hub.amqp:
        Router(hub, book, queues).start()
    _about_the_service(routes, hub, queues)
    _registering(routes, hub, book, queues)
    _about_endpoints(routes, hub, book)
    _about_functions(routes, hub, book)
    _about_tasks(routes, hub, book, queues)
    _for_tests(routes, book)

    @routes.errorhandler(pika.exceptions.AMQPError)
    def no_broker(_exc: Exception) -> Any:
        return jsonify(status="Failed", code="SERVICE_UNAVAILABLE", reason="no broker", message="no broker"), 503

    return routes


def _about_the_service(routes: Blueprint, hub: Hub, queues: Queues) -> None:
    @routes.get("/v2/version")
    def version() -> Response:
        said = {"api": "0.0.0", "min_sdk_version": "2.0.0", "min_ep_version": "2.0.0", "git_sha": "0" * 40}
        return jsonify(said if request.args.get("service") == "all" else said["api"])

    @routes.get("/v2/get_amqp_result_connection_url")
    def amqp_url() -> Response:
        hub.authorize(COMPUTE)
        return jsonify(queue_prefix=PREFIX, connection_url=queues.url)


def _registering(routes: Blueprint, hub: Hub, book: Book, queues: Queues) -> None:
    def register(endpoint_id: str) -> Response:
        owner = hub.authorize(COMPUTE).identity
        asked = request.get_json()
        with book.lock:
            found = book.endpoints.get(endpoint_id) or Endpoint(id=endpoint_id, name="", owner=owner)
            if found.locked_until > time.time():
                refuse(423, "ENDPOINT_LOCKED", f"Endpoint {endpoint_id} is locked")
            if found.owner != owner:
                refuse(403, "FORBIDDEN", f"Endpoint {endpoint_id} belongs to another identity")
            found.name, found.registered = asked.get("endpoint_name", ""), asked
            queues.declare(command_queue(endpoint_id))
            book.endpoints.keep(found)
        return jsonify(
            endpoint_id=endpoint_id,
            command_queue_info=queues.reading(command_queue(endpoint_id)),
            heartbeat_queue_info=queues.writing(HEARTBEATS),
        )

    @routes.post("/v3/endpoints")
    def register_new() -> Response:
        return register(str(uuid.uuid4()))

    @routes.put("/v3/endpoints/<uuid:endpoint_id>")
    def register_known(endpoint_id: uuid.UUID) -> Response:
        return register(str(endpoint_id))


def _about_endpoints(routes: Blueprint, hub: Hub, book: Book) -> None:
    @routes.get("/v2/endpoints")
    def endpoints() -> Response:
        owner = hub.authorize(COMPUTE).identity
        with book.lock:
            mine = [found for found in book.endpoints.all() if found.owner == owner and not found.parent]
            return jsonify([endpoint_document(found) for found in mine])

    @routes.get("/v2/endpoints/<uuid:endpoint_id>")
    def endpoint(endpoint_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            return jsonify(endpoint_document(_endpoint(book, endpoint_id)))

    @routes.get("/v2/endpoints/<uuid:endpoint_id>/status")
    def status(endpoint_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            found = _endpoint(book, endpoint_id)
            online = book.online(found.id) and hub.fault("endpoint_offline", endpoint=found.id) is None
            pulse = book.pulses.get(found.id)
            return jsonify(status="online" if online else "offline", details=pulse.state if pulse else {})

    @routes.delete("/v2/endpoints/<uuid:endpoint_id>")
    def delete(endpoint_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            book.endpoints.drop(_endpoint(book, endpoint_id).id)
        return jsonify(result=302)

    @routes.post("/v3/endpoints/<uuid:endpoint_id>/lock")
    def lock(endpoint_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            found = _endpoint(book, endpoint_id)
            found.locked_until = time.time() + LOCK_S
            book.endpoints.keep(found)
        return jsonify(endpoint_id=found.id, lock_expiration_timestamp=found.locked_until)

    @routes.get("/v3/endpoints/<uuid:endpoint_id>/allowed_functions")
    def allowed(endpoint_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        functions = _endpoint(book, endpoint_id).registered.get("allowed_functions") or []
        return jsonify(endpoint_id=str(endpoint_id), restricted=bool(functions), functions=functions)


def _endpoint(book: Book, endpoint_id: object) -> Endpoint:
    found = book.endpoints.get(endpoint_id)
    if found is None:
        refuse(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} could not be resolved")
    return found


def _about_functions(routes: Blueprint, hub: Hub, book: Book) -> None:
    @routes.post("/v3/functions")
    def register() -> Response:
        owner = hub.authorize(COMPUTE).identity
        function = Function(id=str(uuid.uuid4()), owner=owner, registered=request.get_json())
        with book.lock:
            book.functions.keep(function)
        return jsonify(function_uuid=function.id)

    @routes.route("/v2/functions/<uuid:function_id>", methods=["GET", "DELETE"])
    def function(function_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            found = book.functions.get(function_id)
            if found is None:
                refuse(404, "FUNCTION_NOT_FOUND", f"Function {function_id} could not be resolved")
            if request.method == "DELETE":
                book.functions.drop(found.id)
                return jsonify(result=302)
        return jsonify({"function_uuid": found.id, **found.registered})


def _about_tasks(routes: Blueprint, hub: Hub, book: Book, queues: Queues) -> None:
    @routes.post("/v3/endpoints/<uuid:endpoint_id>/submit")
    def submit(endpoint_id: uuid.UUID) -> Response:
        identity = hub.authorize(COMPUTE).identity
        if (request.content_length or 0) > MAX_BODY_BYTES:
            refuse(413, "PAYLOAD_TOO_LARGE", f"The body is above {MAX_BODY_BYTES} bytes")
        return jsonify(submit_tasks(hub, book, queues, str(endpoint_id), identity, request.get_json()))

    @routes.post("/v2/batch_status")
    def batch_status() -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            tasks = [book.tasks.get(task_id) for task_id in request.get_json()["task_ids"]]
            return jsonify(response="batch", results={task.id: task.document() for task in tasks if task})

    @routes.get("/v2/tasks/<uuid:task_id>")
    def task(task_id: uuid.UUID) -> Response:
        hub.authorize(COMPUTE)
        with book.lock:
            found = book.tasks.get(task_id)
            if found is None:
                refuse(404, "TASK_NOT_FOUND", f"Task {task_id} could not be resolved")
            return jsonify(found.document())

    @routes.get("/v2/taskgroup/<uuid:group_id>")
    def group(group_id: uuid.UUID) -> Response:
        identity = hub.authorize(COMPUTE).identity
        with book.lock:
            found = book.groups.get(group_id)
            if found is None or found.owner != identity:
                refuse(404, "TASK_GROUP_NOT_FOUND", f"Task group {group_id} could not be resolved")
            return jsonify(
                taskgroup_id=found.id, create_websockets_queue=found.queue, tasks=[{"id": one} for one in found.tasks]
            )


def _for_tests(routes: Blueprint, book: Book) -> None:
    @routes.get("/control/compute")
    def state() -> Response:
        with book.lock:
            return jsonify(
                online=[found.id for found in book.endpoints.all() if book.online(found.id)],
                user_endpoints={found.id: found.parent for found in book.endpoints.all() if found.parent},
                tasks=[task.document() | {"function": task.function} for task in book.tasks.all()],
            )
