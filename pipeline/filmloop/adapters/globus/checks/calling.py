"""Sends short functions to the endpoint, beside its queue or through it, and waits for what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filmloop.adapters.globus.compute.client import Compute, Options, Told
from filmloop.config.globus import GlobusLauncher
from filmloop.core.errors import AuthError
from filmloop.core.retry import wait_until

_ANSWER_S = 240.0
"""A first short function waits for processes on a login node that is busy."""
_PATIENCE_S = 170.0
"""Slurm's accounting may take two minutes to answer, and the template asks it."""
_OWNER = "An own endpoint is for the identity alone that has started it: with its GLOBUS_COMPUTE_CLIENT_ID and _SECRET."
_BUSY = "Is the endpoint's host busy? Its log on the cluster says more."
STAYS = (
    "The job stays queued at the facility, and ends soon after it has started. There `qstat -u $USER` (PBS) or "
    "`squeue --me` (Slurm) shows it; `qdel` or `scancel` removes it."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a short function runs.

    Attributes:
        options: Of the endpoint's template.
        wait_s: So long it may take.
        resources: What an engine for several nodes has to be told.
        is_queued: A job waits in the facility's queue for it.
    """

    options: Options
    wait_s: float
    resources: dict[str, int] | None = None
    is_queued: bool = False


def beside_the_queue(section: GlobusLauncher) -> Place:
    """On the endpoint's host."""
    return Place(options=section.control, wait_s=_ANSWER_S)


def on_a_node(section: GlobusLauncher) -> Place:
    """Where a training runs, and as it comes there."""
    # GlobusMPIEngine refuses a function that does not say it.
    resources = {"num_nodes": section.nodes, "ranks_per_node": 1} if section.nodes > 1 else None
    return Place(options=section.options, wait_s=section.queue_wait_s, resources=resources, is_queued=True)


class Caller:
    """Calls the registered function and waits for its answer."""

    def __init__(self, compute: Compute, function_id: str) -> None:
        self._compute, self._function_id = compute, function_id

    def call(self, place: Place, probe: str, python: str = "") -> Told:
        """Have `probe` run by `python`, '' is the endpoint's own; what came of it.

        Raises:
            TransientError: nothing did in time, or the service or the endpoint is away.
            ConfigError: the endpoint refuses the options.
            AuthError: it is another's.
        """
        return self.wait(place, self.send(place, probe, python))

    def send(self, place: Place, probe: str, python: str = "") -> str:
        """The same without waiting; returns the task's id."""
        request = {"do": "versions", "probe": probe, "python": python, "patience_s": _PATIENCE_S}
        try:
            with telling(place):
                sent = self._compute.submit(
                    self._function_id, request, options=place.options, resources=place.resources
                )
        except AuthError as exc:
            raise AuthError(exc.message, hint=f"{_OWNER} {exc.hint}", ids=exc.ids) from exc
        return sent.task_id

    def is_pending(self, task_id: str) -> bool:
        """Whether an answer may still come."""
        return self._compute.ask(task_id).state == "pending"

    def wait(self, place: Place, task_id: str) -> Told:
        """What came of it, when something has."""
        with telling(place):
            return wait_until(
                lambda: None if (told := self._compute.ask(task_id)).state == "pending" else told,
                deadline_s=place.wait_s,
                what="The answer of a short function",
                hint=STAYS if place.is_queued else _BUSY,
                first_s=0.2,
                cap_s=2.0,
            )


def answer_of(told: Told) -> dict[str, Any] | None:
    """What a program said; None if it said nothing."""
    said = (told.result or {}).get("answer")
    return said if isinstance(said, dict) else None


def why(told: Told) -> str:
    """Why there is no answer."""
    result = told.result or {}
    words = told.failure.strip() or f"{result.get('none', '')} {result.get('said', '')}".strip()
    return (words.rpartition("\n")[2] or "no answer")[:1000]


@contextmanager
def telling(place: Place) -> Iterator[None]:
    """A person who does not wait any longer is told what stays."""
    try:
        yield
    except KeyboardInterrupt:
        if place.is_queued:
            _log.error("%s", STAYS)
        raise
