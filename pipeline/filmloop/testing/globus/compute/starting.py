"""User endpoints: one for each identity and set of options, started by the core endpoint when somebody submits to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop.testing.globus.compute.answers import refuse
from filmloop.testing.globus.compute.book import Book, Endpoint
from filmloop.testing.globus.compute.queues import HEARTBEATS, RESULTS, Queues, command_queue, send_command, task_queue
from filmloop.testing.globus.hub import Hub

START_S = 30.0
"""So long a submit waits for a user endpoint. Globus documents about 30 s."""


def user_endpoint(
    hub: Hub, book: Book, queues: Queues, *, core: Endpoint, identity: str, options: Mapping[str, Any],
    runtime: Mapping[str, Any],
) -> Endpoint:  # fmt: skip
    """The one that serves these options, online; the request in hand ends with 422 if it does not come up.

    Status and code of a refused start are those that Globus documents. [choice] The status of `ENDPOINT_NOT_ONLINE`.
    """
    if hub.fault("endpoint_offline", endpoint=core.id) is not None or not book.online(core.id):
        refuse(422, "ENDPOINT_NOT_ONLINE", f"Endpoint {core.id} is not online")
    found = _registered(book, core, identity, options)
    queues.declare(task_queue(found.id))
    if hub.fault("taken_for_alive", endpoint=found.id) is not None:
        return found
    with book.lock:
        book.failures.pop(found.id, None)
    command = {
        "command": "cmd_start_endpoint",
        "args": [],
        "kwargs": {
            "name": found.name,
            "user_opts": dict(options),
            "user_runtime": dict(runtime),
            "amqp_creds": {
                "endpoint_id": found.id,
                "task_queue_info": queues.reading(task_queue(found.id)),
                "result_queue_info": queues.writing(RESULTS),
                "heartbeat_queue_info": queues.writing(HEARTBEATS),
            },
        },
        "globus_effective_identity": identity,
        "globus_identity_set": [{"sub": identity}],
        "globus_username": f"{identity}@clients.auth.globus.org",
    }
    with queues.channel() as channel:
        send_command(channel, command_queue(core.id), command)
    _wait(book, found)
    return found


def _registered(book: Book, core: Endpoint, identity: str, options: Mapping[str, Any]) -> Endpoint:
    """[choice] The name says whose it is and with what options, so that the core endpoint knows one that runs already."""
    name = f"uep.{core.id}." + sha256_bytes(canonical_json([identity, options]))[:16]
    key = str(uuid.uuid5(uuid.UUID(core.id), name))
    with book.lock:
        return book.endpoints.get(key) or book.endpoints.keep(
            Endpoint(id=key, name=name, owner=identity, parent=core.id)
        )


def _wait(book: Book, endpoint: Endpoint) -> None:
    end = time.monotonic() + START_S
    with book.heard:
        while not book.online(endpoint.id):
            if failure := book.failures.get(endpoint.id):
                refuse(422, "SEMANTICALLY_INVALID", f"Request payload failed validation: {failure}")
            left_s = end - time.monotonic()
            if left_s <= 0:
                refuse(422, "ENDPOINT_NOT_ONLINE", f"Its user endpoint did not come online within {START_S:.0f} s")
            book.heard.wait(left_s)
