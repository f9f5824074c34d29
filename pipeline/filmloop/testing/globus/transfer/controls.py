"""What a test sets and sees of Transfer, below /control/."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from filmloop.testing.globus.transfer.collection import Collection
from filmloop.testing.globus.transfer.service import Service


def add(routes: Blueprint, service: Service) -> None:
    """Collections, settings, tasks."""

    @routes.post("/control/collections")
    def collection() -> Response:
        """Serve a folder: `id`, `folder`, and what else `Collection` has. A known id is served otherwise."""
        asked = request.get_json()
        known = service.collections.get(asked["id"])
        service.add(Collection.of((known.as_json() if known else {}) | asked))
        return jsonify(ok=True)

    @routes.post("/control/transfer")
    def settings() -> Response:
        """Change any of `Settings`."""
        with service.hub.lock:
            for name, value in request.get_json().items():
                if not hasattr(service.settings, name):
                    return Response(f"there is no setting {name}", 400)
                setattr(service.settings, name, value)
        return jsonify(ok=True)

    @routes.get("/control/tasks")
    def tasks() -> Response:
        """Every task with all that is known of it, whoever owns it, in the order of submission."""
        with service.hub.lock:
            found = sorted(service.tasks.values(), key=lambda task: task.request_s)
            return jsonify([_seen(task.as_json(), task.document()) for task in found])

    @routes.post("/control/tasks/<task_id>")
    def change(task_id: str) -> Response:
        """What an operator or a fresh login does: `{"is_paused": false}`, `{"status": "ACTIVE"}`, `{"cancel": why}`."""
        task, asked = service.tasks[task_id], request.get_json()
        with service.hub.lock:
            if "cancel" in asked:
                task.canceled_by_admin, task.canceled_by_admin_message = "BOTH", asked["cancel"]
                task.wants_cancel = True
            if "is_paused" in asked:
                task.is_paused = asked["is_paused"]
                task.tell("PAUSED" if task.is_paused else "UNPAUSED")
            if "status" in asked and not task.ended:
                task.status = asked["status"]
            task.nice_status = "OK"
        return jsonify(ok=True)


def _seen(held: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    return {**held, **shown, "asked": held["asked"], "submission_id": held["submission_id"]}
