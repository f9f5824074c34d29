"""What becomes of a task, as its owner sees it, and how an owner ends it."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import refuse
from filmloop.testing.globus.transfer.requests import page_of, who
from filmloop.testing.globus.transfer.service import Service
from filmloop.testing.globus.transfer.task import Task

_CANCEL_WAIT_S = 10.0


def add(routes: Blueprint, service: Service) -> None:
    """Tasks, their events and results."""
    _add_tasks(routes, service)
    _add_books(routes, service)


def _add_tasks(routes: Blueprint, service: Service) -> None:
    @routes.get("/v0.10/task/<task_id>")
    def task(task_id: str) -> Response:
        return jsonify(_fields(_own(service, task_id).document()))

    @routes.put("/v0.10/task/<task_id>")
    def update(task_id: str) -> Response:
        found, asked = _own(service, task_id), request.get_json()
        with service.hub.lock:
            if found.ended:
                refuse(409, "Conflict", "The task has ended")
            found.label = asked.get("label", found.label)
            if "deadline" in asked:
                at = datetime.fromisoformat(asked["deadline"])
                found.deadline_s = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
        return _result("Updated", "Updated task successfully")

    @routes.post("/v0.10/task/<task_id>/cancel")
    def cancel(task_id: str) -> Response:
        found = _own(service, task_id)
        with service.hub.lock:
            if found.ended:
                return _result("TaskComplete", "The task completed before the cancel request was processed.")
            found.wants_cancel = True
            if found.nice_status == "Queued":
                found.end("FAILED", "CANCELED", "canceled")
                service.keep(found)
        if _ends(found):
            return _result("Canceled", "The task has been cancelled successfully.")
        return _result("CancelAccepted", "The task will be cancelled.")

    @routes.get("/v0.10/task_list")
    def task_list() -> Response:
        owner = who(service)
        wanted = _filters(request.args.get("filter", ""))
        with service.hub.lock:
            found = [each for each in service.tasks.values() if each.owner == owner and _matches(each, wanted)]
            found.sort(key=lambda each: each.request_s, reverse=request.args.get("orderby", "DESC").endswith("DESC"))
            lines = [_fields(each.document()) for each in found]
        return jsonify(_window("task_list", lines, limit=10))


def _add_books(routes: Blueprint, service: Service) -> None:
    @routes.get("/v0.10/task/<task_id>/event_list")
    def event_list(task_id: str) -> Response:
        found = _own(service, task_id)
        with service.hub.lock:
            events = [event.document() for event in reversed(found.events)]
        if request.args.get("filter") == "is_error:1":
            events = [event for event in events if event["is_error"]]
        return jsonify(_window("event_list", events, limit=10))

    @routes.get("/v0.10/task/<task_id>/pause_info")
    def pause_info(task_id: str) -> Response:
        found = _own(service, task_id)
        rules = [{"DATA_TYPE": "pause_rule_limited", "message": found.pause_message}] if found.is_paused else []
        message = found.pause_message if found.is_paused else None
        return jsonify(
            DATA_TYPE="pause_info_limited",
            pause_rules=rules,
            source_pause_message=None,
            source_pause_message_share=None,
            destination_pause_message=message,
            destination_pause_message_share=None,
        )

    @routes.get("/v0.10/task/<task_id>/successful_transfers")
    def successful_transfers(task_id: str) -> Response:
        found = _ended(service, task_id)
        lines = [moved.document() for moved in found.moved]
        return jsonify(DATA_TYPE="successful_transfers", **page_of(service, lines, request.args.get("marker")))

    @routes.get("/v0.10/task/<task_id>/skipped_errors")
    def skipped_errors(task_id: str) -> Response:
        found = _ended(service, task_id)
        return jsonify(DATA_TYPE="skipped_errors", **page_of(service, found.skipped_errors, request.args.get("marker")))


def _own(service: Service, task_id: str) -> Task:
    owner = who(service)
    found = service.tasks.get(task_id)
    if found is None or found.owner != owner:
        refuse(404, "TaskNotFound", f"No task found with id '{task_id}'")
    return found


def _ends(task: Task) -> bool:
    end_s = time.monotonic() + _CANCEL_WAIT_S
    while not task.ended and time.monotonic() < end_s:
        time.sleep(0.02)
    return task.ended


def _ended(service: Service, task_id: str) -> Task:
    found = _own(service, task_id)
    if not found.ended:
        refuse(409, "Conflict", "The task has not ended")  # [choice]
    return found


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    wanted = request.args.get("fields")
    if not wanted:
        return document
    return {name: value for name, value in document.items() if name in {"DATA_TYPE", *wanted.split(",")}}


def _window(kind: str, lines: list[Any], *, limit: int) -> dict[str, Any]:
    offset, limit = int(request.args.get("offset", 0)), int(request.args.get("limit", limit))
    shown = lines[offset : offset + limit]
    return {
        "DATA_TYPE": kind,
        "DATA": shown,
        "length": len(shown),
        "limit": limit,
        "offset": offset,
        "total": len(lines),
    }


def _filters(text: str) -> dict[str, list[str]]:
    pairs = (part.partition(":") for part in text.split("/") if part)
    return {key: value.split(",") for key, _, value in pairs}


def _matches(task: Task, wanted: dict[str, list[str]]) -> bool:
    for key, values in wanted.items():
        if key in ("status", "type", "task_id"):
            if getattr(task, key) not in values:
                return False
        elif key == "label":
            if not any(_label(task.label or "", value) for value in values):
                return False
        elif key == "request_time":
            bounds = [_epoch_s(value) for value in (*values, "")[:2]]
            if not (bounds[0] or 0.0) <= task.request_s <= (bounds[1] or float("inf")):
                return False
        else:
            refuse(400, "ClientError.BadRequest", f"filter on {key} is not emulated")
    return True


def _label(label: str, wanted: str) -> bool:
    if wanted.startswith("~"):
        return fnmatch(label.lower(), wanted[1:].lower())
    return label == wanted.removeprefix("=")


def _epoch_s(text: str) -> float | None:
    if not text:
        return None
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def _result(code: str, message: str) -> Response:
    body = {"DATA_TYPE": "result", "code": code, "message": message, "request_id": uuid.uuid4().hex[:9]}
    return make_response(jsonify(body | {"resource": request.path}))
