"""Submitting tasks, at most once for a submission id."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import refuse
from filmloop.testing.globus.transfer.requests import collection_for, who
from filmloop.testing.globus.transfer.service import Service
from filmloop.testing.globus.transfer.task import Task

_DAY_S = 86400.0


def add(routes: Blueprint, service: Service) -> None:
    """Submission ids, transfers, deletions. The fault `pending_limit` makes a submission one too many."""

    @routes.get("/v0.10/submission_id")
    def submission_id() -> Response:
        who(service)
        return jsonify(value=service.new_submission_id())

    @routes.post("/v0.10/transfer")
    def transfer() -> Response:
        return _submit(service, "TRANSFER", ("source_endpoint", "destination_endpoint"))

    @routes.post("/v0.10/delete")
    def delete() -> Response:
        return _submit(service, "DELETE", ("endpoint",))


def _submit(service: Service, kind: str, ends: tuple[str, ...]) -> Response:
    owner, asked = who(service), request.get_json()
    word = kind.lower()
    with service.hub.lock:
        # [choice] a known submission id is answered whatever the rest of the document says
        known = service.find(owner, asked.get("submission_id", ""))
        if known is not None:
            return _result(known, word, "Duplicate", 200)
        for end in ends:
            if end not in asked:
                refuse(400, "ClientError.BadRequest", f"{end} is missing")
            collection_for(service, asked[end])
        _check(service, asked, word)
        deadline_s = _deadline(asked.get("deadline"))
        if service.pending(owner) >= service.settings.pending_limit or service.hub.fault("pending_limit") is not None:
            # [choice] status and code
            refuse(409, "Conflict", f"Limit of {service.settings.pending_limit} pending tasks reached")
        task = Task(
            task_id=str(uuid.uuid1()),
            submission_id=asked["submission_id"],
            owner=owner,
            type=kind,
            asked=asked,
            request_s=time.time(),
            deadline_s=deadline_s,
            label=asked.get("label"),
        )
        service.accept(task)
    return _result(task, word, "Accepted", 202)


def _check(service: Service, asked: dict[str, Any], word: str) -> None:
    if asked.get("submission_id") not in service.submission_ids:
        # [choice] one that the service did not give out
        refuse(400, "ClientError.BadRequest", "submission_id is not one that was requested")
    items = asked.get("DATA") or []
    if not items:
        refuse(400, f"ClientError.BadRequest.No{word.capitalize()}Items", f"A {word} requires at least one item")
    for item in items:
        if word == "transfer" and item.get("recursive") and item.get("external_checksum"):
            refuse(400, "ClientError.BadRequest", "external_checksum cannot be used with directories")


def _deadline(text: str | None) -> float:
    if text is None:
        return time.time() + _DAY_S
    at = datetime.fromisoformat(text)
    at_s = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    if at_s <= time.time():
        refuse(400, "ClientError.BadRequest.InvalidDeadline", "The deadline is in the past")  # [choice] the code
    return at_s


def _result(task: Task, word: str, code: str, status: int) -> Response:
    message = (
        f"The {word} has been accepted and a task has been created and queued for execution"
        if code == "Accepted"
        else "A task with this submission_id was submitted before"
    )
    body = {
        "DATA_TYPE": f"{word}_result",
        "code": code,
        "message": message,
        "request_id": uuid.uuid4().hex[:9],
        "resource": f"/{word}",
        "submission_id": task.submission_id,
        "task_id": task.task_id,
        "task_link": {
            "DATA_TYPE": "link",
            "href": f"task/{task.task_id}?format=json",
            "rel": "related",
            "resource": "task",
            "title": "related task",
        },
    }
    return make_response(jsonify(body), status)
