"""Globus Compute as the launcher sees it: the SDK's own client over HTTPS.

No `Executor`: that holds a connection to a message broker open, has threads that wait for ever for a lost result, and dies
with the connection. Asking for a task costs one request whenever we want to know.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filmloop.adapters.globus.compute.function import run
from filmloop.adapters.globus.errors import answered, globus_errors
from filmloop.adapters.globus.identity.auth import open_app
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.config.globus import GlobusSection
from filmloop.core.errors import ConfigError, FilmloopError, TransientError
from filmloop.core.fsio import canonical_json, sha256_bytes

if TYPE_CHECKING:
    from globus_compute_sdk import Client

_SUBMIT_S = 90.0
"""The service answers a submission when the endpoint's process for it is up: it gives that about 30 s."""
_RETRIES = 1
_HTTP_TIMEOUT = "GLOBUS_SDK_HTTP_TIMEOUT"
_PASSES = re.compile(
    r"not online|offline|did not come online|timed? ?out|no heartbeat|another instance of this endpoint", re.IGNORECASE
)
"""Refusals that are none of the options. A user endpoint that was killed is refused to itself for three heartbeats."""
_BURST, _WINDOW_S = 3, 16.0
"""The SDK's Executor slows down above 4 submissions in 16 s: short functions leave one of them for training."""

T = TypeVar("T")
Use = Literal["ask", "submit", "errand"]
Options = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A task that the service took.

    Attributes:
        task_id: Its id.
        group: Of the task group that it is in.
    """

    task_id: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the service knows of a task.

    Attributes:
        state: `failed`: the function gave no result; `gone`: the service knows the task or its result no more.
        status: Its own word.
        result: What the function returned.
        failure: Why there is none: a traceback from over there.
    """

    state: Literal["pending", "done", "failed", "gone"]
    status: str = ""
    result: dict[str, Any] | None = None
    failure: str = ""


class Budget:
    """How many short functions may be sent now."""

    def __init__(self) -> None:
        self._sent_s: list[float] = []

    def take(self, *, leave: int = 0) -> bool:
        """Whether one more may be sent, and `leave` more after it; it counts as sent if so."""
        now_s = time.monotonic()
        self._sent_s = [then_s for then_s in self._sent_s if now_s - then_s < _WINDOW_S]
        if len(self._sent_s) + leave >= _BURST:
            return False
        self._sent_s.append(now_s)
        return True


class Compute:
    """One endpoint, through the service. Nothing is asked before the first call.

    Args:
        section: The site file's `[launcher]`.
        globus: The site file's `[globus]`.
    """

    def __init__(self, section: LauncherSection, globus: GlobusSection) -> None:
        self._section, self._globus = section, globus
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()

    def register(self) -> str:
        """Register the function; returns its id."""
        with globus_errors("Registering the function"):
            return _sent(lambda: str(self._client("submit").register_function(run)))

    def unregister(self, function_id: str) -> None:
        """Have the service forget a function."""
        with globus_errors("Removing a function from Globus Compute"):
            _sent(lambda: self._client("ask").delete_function(function_id))

    def submit(
        self,
        function_id: str,
        request: Mapping[str, Any],
        *,
        options: Options,
        group: str = "",
        resources: Mapping[str, Any] | None = None,
        use: Use = "submit",
    ) -> Sent:
        """Have the endpoint run the function; comes back when the service has taken the task.

        `use` is `errand` in a thread of its own: apps of the SDK are not made for several threads.

        Raises:
            ConfigError: there is no such endpoint, or it refuses such options.
            TransientError: the service or the endpoint is away. The task may have been taken all the same.
            AuthError: a person must log in.
        """
        client = self._client(use)
        batch = client.create_batch(
            task_group_id=group or None,
            resource_specification=dict(resources) if resources else None,
            user_endpoint_config=dict(options) or None,
            result_serializers=["globus_compute_sdk.serialize.JSONData"],
        )
        batch.add(function_id, args=(dict(request),))

        def send() -> Sent:
            sent: Any = client.batch_run(self._section.endpoint, batch)
            return Sent(task_id=str(sent["tasks"][function_id][0]), group=str(sent["task_group_id"]))

        with self._refusals(), globus_errors("Sending a function to the endpoint"):
            return _sent(send)

    def ask(self, task_id: str) -> Told:
        """What became of a task.

        Raises:
            TransientError: the service is away.
            AuthError: a person must log in.
        """
        import globus_sdk
        from globus_compute_sdk.errors import SerdeError, TaskExecutionFailed

        try:
            with globus_errors("Asking for a task"), warnings.catch_warnings():
                # It warns of another Python at the endpoint, which `versions` compares, and which does not matter.
                warnings.simplefilter("ignore", UserWarning)
                try:
                    said = _sent(lambda: self._client("ask").get_task(task_id))
                except TaskExecutionFailed as exc:
                    return Told(state="failed", status="failed", failure=exc.remote_data)
                except SerdeError as exc:
                    return Told(state="failed", status="failed", failure=f"{type(exc).__name__}: {exc}")
                except globus_sdk.GlobusAPIError as exc:
                    if exc.http_status != 404:
                        raise
                    return Told(state="gone")
        except ConfigError as exc:  # the service took the task: what it says now is about itself
            raise TransientError(exc.message, hint=exc.hint) from exc
        if said["pending"]:
            return Told(state="pending", status=str(said["status"]))
        if "result" not in said:  # the service lets results go after a while
            return Told(state="gone", status=str(said["status"]))
        if not isinstance(said["result"], dict):
            return Told(state="failed", status="failed", failure="The function returned something else.")
        return Told(state="done", status="success", result=said["result"])

    def is_online(self) -> bool:
        """Whether the service hears from the endpoint.

        Raises:
            TransientError: the service is away.
        """
        with globus_errors("Asking for the endpoint"):
            ask = self._client("ask").get_endpoint_status
            return _sent(lambda: bool(ask(self._section.endpoint)["status"] == "online"))

    def tasks_of(self, group: str) -> list[str]:
        """Ids of the tasks of a group, oldest first as far as the service says.

        Raises:
            TransientError: the service is away.
        """
        with globus_errors("Asking for a task group"):
            # What `Executor.reload_tasks` asks, without its connection to the broker.
            ask = self._client("ask")._compute_web_client.v2.get_task_group
            return _sent(lambda: [str(task["id"]) for task in ask(group).data.get("tasks", [])])

    def _client(self, use: Use) -> Client:
        """The SDK's client: a patient one for submissions, one of `request_timeout_s` for the rest."""
        with self._lock:
            if use not in self._clients:
                timeout_s = self._section.request_timeout_s
                self._clients[use] = self._connect(timeout_s if use == "ask" else max(timeout_s, _SUBMIT_S))
            return self._clients[use]

    def _connect(self, timeout_s: float) -> Client:
        from globus_compute_sdk import Client
        from globus_compute_sdk.serialize import AllCodeStrategies, JSONData

        with globus_errors("Reaching Globus Compute"), _http_timeout(timeout_s):
            app = open_app(self._globus)
            client = _sent(
                lambda: Client(
                    app=app,
                    code_serialization_strategy=AllCodeStrategies(),
                    data_serialization_strategy=JSONData(),
                )
            )
        for api in (client._compute_web_client.v2, client._compute_web_client.v3):
            api.retry_config.max_retries = _RETRIES  # five of them would hold a poll up for minutes
        return client

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the service's refusals of a submission mean; the rest is `globus_errors`'."""
        import globus_sdk

        try:
            yield
        except FilmloopError as exc:
            cause = exc.__cause__
            if not isinstance(cause, globus_sdk.GlobusAPIError) or cause.http_status not in (404, 422):
                raise
            raise self._refusal(cause.http_status, _words(cause)) from cause

    def _refusal(self, status: int, words: str) -> FilmloopError:
        ids = {"endpoint": self._section.endpoint, "status": str(status)}
        if status == 404:
            return ConfigError(
                f"Globus Compute does not know what it is asked for: {words}",
                hint="Is [launcher] endpoint in the site file right? `globus-compute-endpoint list` on the cluster "
                "tells its id.",
                ids=ids,
            )
        if _PASSES.search(words):
            return TransientError(
                f"The endpoint does not take the job: {words}",
                hint="Somebody on the cluster has to see to it: `globus-compute-endpoint list` tells whether it runs. "
                "The next call goes on.",
                ids=ids,
            )
        return ConfigError(
            f"The endpoint refuses the job: {words}",
            hint="Mend [launcher.options] or [launcher.control] in the site file, or the endpoint's template.",
            ids=ids,
        )


def _sent(send: Callable[[], T]) -> T:
    return answered("Globus Compute", send)


def source_digest() -> str:
    """Tells this text of the function from every other."""
    return sha256_bytes(canonical_json(inspect.getsource(run)))


def _words(exc: Any) -> str:
    """The service's own words; the SDK finds none where the document is not as it expects."""
    raw = exc.raw_json if isinstance(exc.raw_json, dict) else {}
    said = raw.get("reason") or raw.get("message") or exc.message or exc.text
    return " ".join(str(said).split())[:2000]


@contextmanager
def _http_timeout(timeout_s: float) -> Iterator[None]:
    """The SDK takes its time-out from the environment when a client is made, and has no other switch."""
    before = os.environ.get(_HTTP_TIMEOUT)
    if before is None:
        os.environ[_HTTP_TIMEOUT] = str(timeout_s)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_HTTP_TIMEOUT, None)
