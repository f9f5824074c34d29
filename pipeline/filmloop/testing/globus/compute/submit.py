"""Submitting: the endpoint is made to run, then the tasks are written down and put into its queue."""

from __future__ import annotations

import json
import uuid
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task as TaskMessage
from pika.adapters.blocking_connection import BlockingChannel

from filmloop.testing.globus.compute.answers import refuse
from filmloop.testing.globus.compute.book import Book, Group, Task
from filmloop.testing.globus.compute.queues import Queues, group_queue, send, task_queue
from filmloop.testing.globus.compute.starting import user_endpoint
from filmloop.testing.globus.hub import Hub

MAX_BODY_BYTES = 10 * 1024 * 1024


def submit_tasks(
    hub: Hub, book: Book, queues: Queues, endpoint_id: str, identity: str, asked: dict[str, Any]
) -> dict[str, Any]:
    """Accept a batch; returns what the SDK wants to know of it. Refusals end the request in hand."""
    core = book.endpoints.get(endpoint_id)
    if core is None or core.parent:
        refuse(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} could not be resolved")
    for function_id in asked["tasks"]:
        if book.functions.get(function_id) is None:
            refuse(404, "FUNCTION_NOT_FOUND", f"Function {function_id} could not be resolved")
    group = _group(book, asked.get("task_group_id"), identity)
    options = asked.get("user_endpoint_config") or {}
    runtime = asked.get("user_runtime") or {}
    user = user_endpoint(hub, book, queues, core=core, identity=identity, options=options, runtime=runtime)
    if asked.get("create_queue"):
        queues.declare(group_queue(group.id))
        group.queue = True
    said: dict[str, list[str]] = {}
    with queues.channel() as channel:
        for function_id, payloads in asked["tasks"].items():
            said[function_id] = [_send(book, channel, group, user.id, function_id, one, asked) for one in payloads]
    return {"request_id": str(uuid.uuid4()), "task_group_id": group.id, "endpoint_id": core.id, "tasks": said}


def _group(book: Book, group_id: str | None, identity: str) -> Group:
    """A known one or a new one: the SDK documents that an unknown id is an error."""
    if not group_id:
        return Group(id=str(uuid.uuid4()), owner=identity)
    found = book.groups.get(group_id)
    if found is None or found.owner != identity:
        refuse(404, "TASK_GROUP_NOT_FOUND", f"Task group {group_id} could not be resolved")
    return found


def _send(
    book: Book,
    channel: BlockingChannel,
    group: Group,
    endpoint: str,
    function_id: str,
    payload: str,
    asked: dict[str, Any],
) -> str:
    function = book.functions.get(function_id)
    assert function is not None
    task = Task(id=str(uuid.uuid4()), group=group.id, endpoint=endpoint, function=function_id)
    with book.lock:
        group.tasks.append(task.id)
        book.groups.keep(group)
        book.tasks.keep(task)
    message = TaskMessage(task_id=uuid.UUID(task.id), task_buffer=function.registered["function_code"] + payload)
    headers: dict[str, Any] = {"function_uuid": function_id, "task_uuid": task.id}
    if asked.get("resource_specification"):
        headers["resource_specification"] = json.dumps(asked["resource_specification"])
    if asked.get("result_serializers"):
        headers["result_serializers"] = asked["result_serializers"]
    send(channel, task_queue(endpoint), messagepack.pack(message), headers=headers)
    return task.id
