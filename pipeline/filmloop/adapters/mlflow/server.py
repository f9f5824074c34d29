"""Our own MLflow server on this machine: found, started once, stopped. SQLite and an artifact folder, loopback only.

`server.json` in the registry folder says where it runs. The process is a session of its own and outlives whoever
started it. MLflow's command is a parent that starts uvicorn as its child: both are in one process group, which carries
the parent's number, and carry one token in their environment. `servergroup` says who is ours to signal.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from filmloop.adapters.mlflow.processes import group_listens, port_holder, port_is_free, start_ticks
from filmloop.adapters.mlflow.servergroup import TOKEN, ServerGroup
from filmloop.config.paths import Home
from filmloop.config.schema import MlflowRegistry as Section
from filmloop.core.clock import utc_now
from filmloop.core.documents import Document
from filmloop.core.errors import CancelledError, ConfigError, DataError, TransientError
from filmloop.core.fsio import disk_errors, try_lock
from filmloop.core.retry import wait_until

FIRST_PORT, LAST_PORT = 5050, 5149
"""Searched if the site names no port. 5000, MLflow's own default, is often taken."""

_PORT_PATIENCE_S = 10.0
_NOT_FOR_IT = ("MLFLOW_TRACKING_", "FILMLOOP_GLOBUS_")
"""Variables that a server does not inherit: how to reach another one, and secrets, which it would show to its user for weeks."""
_TAIL_LINES = 12
_log = logging.getLogger(__name__)
# Popen objects of servers that this process started: polled, so that a dead one is no zombie for ever.
_children: dict[int, subprocess.Popen[bytes]] = {}
_starting: set[int] = set()

Announce = Callable[[str], None]
Wanted = Callable[[], bool]


class ServerRecord(Document):
    """`server.json`: where the last server of this home was started."""

    home: str
    uri: str
    port: int
    pid: int
    start_ticks: int
    started_utc: str
    token: str = ""

    @property
    def group(self) -> ServerGroup:
        """Its processes."""
        return ServerGroup(leader=self.pid, start_ticks=self.start_ticks, token=self.token)


def find_server(home: Home, section: Section) -> str | None:
    """Address of this home's server if it is alive and answers, else None. Takes milliseconds."""
    record = _read(home)
    if record is None or not _alive(record) or not _answers(section, record):
        return None
    return record.uri


def ensure_server(
    home: Home, section: Section, *, announce: Announce = lambda line: None, wanted: Wanted = lambda: True
) -> str:
    """Address of this home's server; starts it if need be. Callers at the same time start one.

    A start that Ctrl-C cuts off, or that is not `wanted` any more, leaves no server behind.

    Raises:
        CancelledError: `wanted` said no before the server was up.
        ConfigError: MLflow's server is not installed, the port that the site names is taken, or a server that does not
            answer belongs to another user.
        TransientError: it did not come up within `section.start_deadline_s`; the message ends with its log.
    """
    if uri := find_server(home, section):
        return uri

    def found_or_started() -> str | None:
        _see_that(wanted)
        with try_lock(home.registry / "server.lock") as ours:
            # Whoever has the lock is starting one; if that fails, the next one here tries.
            return (find_server(home, section) or _start(home, section, announce, wanted)) if ours else None

    with disk_errors(home.registry):
        home.registry.mkdir(parents=True, exist_ok=True)
    return wait_until(
        found_or_started,
        deadline_s=section.start_deadline_s,
        what="The start of the MLflow server by another process",
        hint=f"See {_log_file(home)}.",
        cap_s=0.25,
    )


def is_starting() -> bool:
    """Whether a thread of this process has a server on its way, which nobody may find half made."""
    return bool(_starting)


def require_host(section: Section) -> None:
    """See that a server can listen where the site says: a name that means nothing here must not cost the one that runs.

    Raises:
        ConfigError: it cannot.
    """
    if not port_is_free(section.host, 0):
        raise ConfigError(
            f"No server can listen at {section.host!r} on this machine.",
            hint="Set [registry] host to a name or an address of this machine; 127.0.0.1 is reached from here alone.",
            ids={"host": section.host},
        )


def stop_server(home: Home) -> bool:
    """End this home's server and everything it started; False if none ran.

    Raises:
        ConfigError: it belongs to another user.
    """
    record = _read(home)
    if record is None or not record.group.members():
        return False
    _end(record)
    return True


def serve(home: Home, section: Section, *, announce: Announce) -> None:
    """Run the server in the foreground: until SIGINT or SIGTERM, which end it, or until it ends by itself.

    One that runs already is taken over, so that a service manager may restart this command at any time.

    Raises:
        ConfigError, TransientError: as `ensure_server`, or the server ended by itself.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    # From here on, also while the server comes up: it has a session of its own, and would outlive this process.
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            uri = ensure_server(home, section, announce=announce, wanted=lambda: not asked)
        except CancelledError:
            return
        record = _read(home)
        announce(f"MLflow registry at {uri} (log: {_log_file(home)}); Ctrl-C stops it.")
        while not asked and record is not None and _alive(record):
            time.sleep(0.2)
        stop_server(home)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not asked:
        raise TransientError(
            f"The MLflow server at {uri} ended by itself. {_tail(home)}", hint="Start it again: filmloop registry serve"
        )


def _start(home: Home, section: Section, announce: Announce, wanted: Wanted) -> str:
    _need_mlflow()
    require_host(section)
    last = _read(home)
    if last is not None and last.group.members():
        if _alive(last) and _came_up(section, last, min(30.0, section.start_deadline_s), wanted):
            return last.uri
        _log.warning("The MLflow server of process %s does not answer: starting another.", last.pid)
        _end(last)
    began_s, is_new = time.monotonic(), not database_of(home).exists()
    announce("Starting the MLflow server (5 s or so) ...")
    _starting.add(threading.get_ident())
    try:
        uri = _first_up(home, section, _ports(section, last), wanted, is_new=is_new)
    finally:
        _starting.discard(threading.get_ident())
    _log.info("MLflow server at %s after %.1f s", uri, time.monotonic() - began_s)
    return uri


def _first_up(home: Home, section: Section, ports: list[int], wanted: Wanted, *, is_new: bool) -> str:
    """The address of a server, at the first of the ports that it comes up at; one that does not come up is ended."""
    for port in ports:
        record = _launch(home, section, port)
        try:
            came_up = _came_up(section, record, section.start_deadline_s, wanted)
        except BaseException:
            _give_up(home, section, record, is_new=is_new)
            raise
        if came_up:
            return record.uri
        ended = not _alive(record)
        _give_up(home, section, record, is_new=is_new)
        # Someone may have taken the port between our look and its start; anything else will not get better.
        if not (ended and not port_is_free(section.host, port)):
            happened = "ended at once" if ended else f"did not answer within {section.start_deadline_s:.0f} s"
            raise TransientError(
                f"The MLflow server {happened}. {_tail(home)}",
                hint=f"The whole log is {_log_file(home)}; `filmloop registry serve` tries again.",
                ids={"port": str(port)},
            )
    raise _taken(section.port or FIRST_PORT, "[registry] port")


def _ports(section: Section, last: ServerRecord | None) -> list[int]:
    """Ports to try, in order: the one that the site names, else the last one used and then the first free ones.

    Raises:
        ConfigError: the one that the site names is taken.
    """
    if section.port:
        ours_before = last is not None and last.port == section.port
        if not _frees(section, patience_s=_PORT_PATIENCE_S if ours_before else 0.0):
            raise _taken(section.port, "[registry] port")
        return [section.port]
    wanted = [last.port] if last else []
    wanted += [port for port in range(FIRST_PORT, LAST_PORT + 1) if port not in wanted]
    free = (port for port in wanted if port_is_free(section.host, port))
    return [port for port, _ in zip(free, range(3), strict=False)]


def _frees(section: Section, patience_s: float) -> bool:
    """Whether the named port is free, or becomes so in time.

    A killed server counts as gone once its main thread is; the kernel closes its sockets a moment later, when the last
    of its threads has ended.
    """
    end = time.monotonic() + patience_s
    while not port_is_free(section.host, section.port):
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _taken(port: int, key: str) -> ConfigError:
    holder = port_holder(port)
    return ConfigError(
        f"Port {port} is in use" + (f" by {holder}." if holder else " by another process."),
        hint=f"Choose another `{key}` in the site file (0 finds a free one), or stop that process.",
        ids={"port": str(port)},
    )


def _launch(home: Home, section: Section, port: int) -> ServerRecord:
    """Start the process and record it. A crash between the two leaves a server that nobody finds: it does no harm.

    One that cannot be recorded, as on a full disk, is ended: every call would leave another one.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", section.host, "--port", str(port)]
    # Both below its working folder, the registry's: MLflow takes whole paths apart, and a `%` or a `?` in one of them
    # leads out of the state folder.
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{database_of(home).name}"]
    command += ["--artifacts-destination", "artifacts"]
    # The edge asks every second; one line each would be 8 MB of log a day.
    command += ["--uvicorn-opts", "--log-level warning --no-access-log"]
    # Job execution would be a third process of 250 MB for things we do not use.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_IT)}
    with disk_errors(home.registry), _log_file(home).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home.registry,
            env={**environment, **quiet, TOKEN: token},
            start_new_session=True,
        )
    _children[child.pid] = child
    record = ServerRecord(
        home=str(home.registry),
        uri=f"http://{_reachable(section.host)}:{port}",
        port=port,
        pid=child.pid,
        start_ticks=start_ticks(child.pid) or 0,
        started_utc=utc_now(),
        token=token,
    )
    try:
        record.write(_record_file(home))
    except BaseException:
        _end(record)
        raise
    return record


def _came_up(section: Section, record: ServerRecord, deadline_s: float, wanted: Wanted) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        _see_that(wanted)
        if not _alive(record):
            return False
        if _answers(section, record):
            return True
        time.sleep(0.1)
    return False


def _see_that(wanted: Wanted) -> None:
    if not wanted():
        raise CancelledError("The start of the MLflow server was given up: nobody waits for it any more.")


def _give_up(home: Home, section: Section, record: ServerRecord, *, is_new: bool) -> None:
    """End a server that did not come up. The tables of a new one are half made then: no later server could use them."""
    empty = is_new and not _answers(section, record)
    _end(record, at_once=True)
    if empty:
        for path in home.registry.glob(f"{database_of(home).name}*"):
            path.unlink(missing_ok=True)


def _answers(section: Section, record: ServerRecord) -> bool:
    """Whether our own server answers: a stranger that took the port while ours was starting would answer too."""
    return _healthy(section, record.port) and group_listens(record.pid, record.port)


def _healthy(section: Section, port: int) -> bool:
    """Whether MLflow answers there. Plain http.client: no proxy between us and this machine."""
    connection = http.client.HTTPConnection(_reachable(section.host), port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status == 200 and answer.read(16) == b"OK"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """The address to dial for a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _alive(record: ServerRecord) -> bool:
    if record.pid in _children:
        _children[record.pid].poll()
    return record.group.is_led()


def _end(record: ServerRecord, *, at_once: bool = False) -> None:
    record.group.end(at_once=at_once)
    if child := _children.pop(record.pid, None):
        child.wait()


def _need_mlflow() -> None:
    try:
        importlib.metadata.version("mlflow")
    except importlib.metadata.PackageNotFoundError as exc:
        raise ConfigError(
            "The MLflow server is not installed here.",
            hint="pip install 'filmloop[registry]', or name a server as `[registry] uri` in the site file.",
        ) from exc


def _read(home: Home) -> ServerRecord | None:
    """The record; None if there is none, if it is damaged, or if it came here with a copy of another home."""
    try:
        record = ServerRecord.read(_record_file(home))
    except DataError:
        return None
    return record if record.home == str(home.registry) else None


def database_of(home: Home) -> Path:
    """Where our own server keeps all but the artifacts; MLflow makes it at the first start."""
    return home.registry / "mlflow.sqlite"


def _record_file(home: Home) -> Path:
    return home.registry / "server.json"


def _log_file(home: Home) -> Path:
    return home.registry / "server.log"


def _tail(home: Home) -> str:
    """The last lines of its log, for an error message."""
    try:
        lines = _log_file(home).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "It left no log."
    return "Its log ends:\n" + "\n".join(lines[-_TAIL_LINES:])
