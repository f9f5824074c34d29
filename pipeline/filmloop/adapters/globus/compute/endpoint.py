"""What has to be known about the endpoint before something is sent there: the function's id, a task group, versions."""

from __future__ import annotations

import logging
import time
from typing import Any

from filmloop import __version__
from filmloop.adapters.globus.compute import versions
from filmloop.adapters.globus.compute.client import Budget, Compute, Sent, Told, Use, source_digest
from filmloop.adapters.globus.compute.launchjournal import Endpoint, LaunchJournal, Sending
from filmloop.adapters.globus.compute.outcome import answer_of
from filmloop.adapters.globus.compute.wire import TaskRequest
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.core.clock import epoch_s, utc_now
from filmloop.core.documents import TrainJob
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.fsio import canonical_json, sha256_bytes
from filmloop.core.retry import wait_until

_log = logging.getLogger(__name__)
_DAY_S = 86400.0
_CHECK_S = 180.0
"""A first short function may have to wait for processes on a loaded login node."""
_KEPT = 100
_SPARE_S = 90.0
"""What a program over there may need on top of what it waits for."""


class Known:
    """Finds out what is not known yet and remembers it in the journal; checked again after a day.

    Args:
        section: The site file's `[launcher]`.
        compute: The service.
        journal: Where it is written down.

    Attributes:
        budget: Of short functions.
    """

    def __init__(self, section: LauncherSection, compute: Compute, journal: LaunchJournal) -> None:
        self._section, self._compute, self._journal = section, compute, journal
        self.budget = Budget()

    def get(self) -> Endpoint:
        """What is known; before the first job and after every change the two sides are compared.

        Where short functions have no place of their own, the training function compares for itself.

        Raises:
            ConfigError: the two sides cannot work together.
            TransientError: the service or the endpoint is away.
        """
        known = self._journal.endpoint(self._section.endpoint)
        if known is None or known.source != source_digest():
            known = self.renew()
        if self._section.control and not self._is_current(known):
            return self.check(known)
        if known.group and not _is_young(known.group_utc):
            return self._remember(known, group="")
        return known

    def renew(self) -> Endpoint:
        """Forget the function and the task group, which the service did not know, and get new ones."""
        checks = tuple(self.own_tasks())
        known = Endpoint(function_id=self._compute.register(), source=source_digest(), check_tasks=checks)
        return self._journal.remember(self._section.endpoint, known)

    def check(self, known: Endpoint | None = None) -> Endpoint:
        """Compare both sides, by a function that is sent with `[launcher.control]`, or with the options of training.

        Raises:
            ConfigError: they cannot work together.
            TransientError: the service or the endpoint is away, or does not answer.
        """
        known = known or self.get()
        request = {"do": "versions", "probe": versions.PROBE, "python": self._section.python, "patience_s": 60.0}
        sent = self._compute.submit(known.function_id, request, options=self._section.control or self._section.options)
        told = wait_until(
            lambda: None if (told := self._compute.ask(sent.task_id)).state == "pending" else told,
            deadline_s=_CHECK_S,
            what="The answer of a short function",
            hint="Is the endpoint busy, or [launcher.control] an engine that waits in the queue?",
            first_s=0.2,
        )
        found = self.compared(told)
        found.raise_problems()
        for note in found.notes:
            _log.warning("%s", note)
        return self._remember(
            known,
            group=sent.group,
            group_utc=utc_now(),
            check_tasks=(*known.check_tasks, sent.task_id)[-_KEPT:],
            here=versions.here(),
            options=self._options_digest(),
            checked_utc=utc_now(),
            notes=found.notes,
        )

    def keep_group(self, group: str) -> None:
        """Remember the task group that the service made for a submission without one."""
        known = self._journal.endpoint(self._section.endpoint)
        if known is not None and not known.group:
            self._remember(known, group=group, group_utc=utc_now())

    def own_tasks(self) -> set[str]:
        """Tasks of the task groups that are no training."""
        known = self._journal.endpoint(self._section.endpoint)
        return set(known.check_tasks) if known is not None else set()

    def send(self, request: TaskRequest, *, group: str = "", use: Use = "submit") -> Sent:
        """Send a request to the program over there: training with its options, the rest beside it if there is a place.

        Raises:
            ConfigError: the endpoint refuses such options, or the service has forgotten the function or the group.
            TransientError: the service or the endpoint is away.
        """
        known, section = self._journal.endpoint(self._section.endpoint) or self.get(), self._section
        if request.do != "train":
            options = section.control or section.options
            return self._compute.submit(known.function_id, request.as_json(), options=options, use=use)
        nodes = {"num_nodes": section.nodes, "ranks_per_node": 1} if section.nodes > 1 else None
        return self._compute.submit(
            known.function_id, request.as_json(), options=section.options, group=group, resources=nodes, use=use
        )

    def request(
        self, job: TrainJob, sending: Sending, do: str, *, command: tuple[str, ...], grace_s: float
    ) -> TaskRequest:
        """The request of an attempt."""
        section, wait_s = self._section, grace_s + _SPARE_S
        return TaskRequest(
            do=do,
            python=section.python,
            # A task that comes second waits for the first before it may begin itself.
            patience_s=2 * (job.deadline_s + wait_s) if do == "train" else wait_s,
            job=job,
            attempt=sending.attempt,
            token=sending.token,
            start_by_s=epoch_s(sending.submitted_utc) + section.queue_wait_s,
            command=command,
            nodes=section.nodes,
            processes_per_node=section.processes_per_node,
            threads=section.threads,
            save_before_s=section.save_before_s,
            walltime_s=section.walltime_s,
            grace_s=grace_s,
            filmloop=__version__,
        )

    def compared(self, told: Told) -> versions.Comparison:
        """What the two sides make of each other, as a function that was sent to compare them has found.

        Raises:
            ConfigError: there is no Python over there that could tell.
            TransientError: the function was lost, or its program did not answer in time.
        """
        result = told.result or {}
        training = result.get("answer")
        if not isinstance(training, dict):
            if _is_lost(told):
                raise TransientError(
                    f"The comparison with the endpoint was lost: {answer_of(told, '').detail}",
                    hint="The next call makes it again.",
                )
            why = told.failure.strip().rpartition("\n")[2] or f"{result.get('none', '')} {result.get('said', '')}"
            raise ConfigError(
                f"The endpoint cannot run {self._section.python or 'its own Python'}: {why.strip()[:1000]}",
                hint="Name an interpreter of the cluster that has filmloop[hpc] in [launcher] python.",
            )
        return versions.compare(versions.here(), result.get("worker", {}), training)

    def _is_current(self, known: Endpoint) -> bool:
        same = known.here == versions.here() and known.options == self._options_digest()
        return same and _is_young(known.checked_utc)

    def _options_digest(self) -> str:
        section = self._section
        return sha256_bytes(canonical_json([section.options, section.control, section.python, section.nodes]))

    def _remember(self, known: Endpoint, **values: Any) -> Endpoint:
        return self._journal.remember(self._section.endpoint, known.model_copy(update=values))


def _is_lost(told: Told) -> bool:
    if told.result is None:
        return answer_of(told, "").state == "lost"
    code = told.result.get("exit_code")
    return not isinstance(code, int) or code < 0 or code > 128


def _is_young(utc: str) -> bool:
    return bool(utc) and 0 <= time.time() - epoch_s(utc) < _DAY_S
