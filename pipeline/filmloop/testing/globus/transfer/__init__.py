"""Globus Transfer v0.10, emulated: it really copies between folders of this machine, and lets things go wrong on request.

What the hosted service may do otherwise is marked `[choice]`; docs/reference/globus-emulator.md lists it.
"""

from __future__ import annotations

from flask import Blueprint

from filmloop.testing.globus.hub import Hub
from filmloop.testing.globus.transfer import answers, controls, endpoints, operations, submit, tasks
from filmloop.testing.globus.transfer.service import Service


def blueprint(hub: Hub) -> Blueprint:
    """The routes of Transfer and their controls."""
    routes = Blueprint("transfer", __name__)
    service = Service(hub)
    for part in (submit, tasks, operations, endpoints, controls):
        part.add(routes, service)
    answers.spoil(routes, hub)
    service.resume()
    return routes
