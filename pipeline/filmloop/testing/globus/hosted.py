"""The hosted services of Globus in one process: `python -m filmloop.testing.globus.hosted --port P --state DIR`.

`hosted()` starts it beside a test and yields where it is, the environment that points the SDKs there, and its controls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmloop.testing.mlflow_server import free_port

PARTS = ("control", "auth", "transfer", "compute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """The services that run."""

    url: str
    state: Path
    amqp: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """What points the SDKs here, and keeps the tokens of a person who runs the tests out of it."""
        home = self.state / "home"
        return {
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": self.url + "/",
            "GLOBUS_SDK_SERVICE_URL_TRANSFER": self.url + "/",
            "GLOBUS_SDK_SERVICE_URL_TIMER": self.url + "/timers/",
            "GLOBUS_SDK_HTTP_TIMEOUT": "10",
            # The Compute SDK knows one loopback address only, http://localhost:5000. These services are the proxy for the
            # name localhost: nothing has to listen on that port, and several runs on one machine do not meet.
            "http_proxy": self.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HOME": str(home),
        }

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request to a control route; `path` is what follows /control/."""
        asked = urllib.request.Request(
            f"{self.url}/control/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=30) as answer:
            return json.load(answer)

    def fault(
        self, name: str, *, times: int = 1, skip: int = 0, match: dict[str, Any] | None = None, **params: Any
    ) -> None:
        """Let something go wrong `times` times (below 0: always), after `skip` occasions; see `hub.Fault`."""
        self.ask("POST", "faults", {"name": name, "times": times, "skip": skip, "match": match or {}, "params": params})

    def clear_faults(self, name: str | None = None) -> None:
        """No such fault fires any more; how often it fired stays known."""
        self.ask("DELETE", "faults" + (f"?name={name}" if name else ""))

    def fired(self, name: str) -> int:
        """How often a fault fired."""
        return int(self.ask("GET", "state")["fired"].get(name, 0))

    def counts(self) -> dict[str, int]:
        """Requests by route, as `GET /v0.10/task/<task_id>`."""
        return dict(self.ask("GET", "state")["counts"])

    def log(self) -> list[dict[str, Any]]:
        """Every request: when, its route, its path, the status that it was answered with, the bytes of its body."""
        return list(self.ask("GET", "state")["log"])

    def reset(self) -> None:
        """Forget faults and counts."""
        self.ask("POST", "reset", {})


@contextmanager
def hosted(state: Path | None = None, *, port: int = 0, amqp: str = "", start_s: float = 30.0) -> Iterator[Hosted]:
    """Run the services in a process of their own until the block ends; it ends with its parent, too.

    Raises:
        TimeoutError: they did not come up; the message holds what they wrote.
    """
    folder = Path(tempfile.mkdtemp(prefix="filmloop-globus-")) if state is None else state
    (folder / "home").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    found = Hosted(url=f"http://127.0.0.1:{port}", state=folder, amqp=amqp)
    argv = [sys.executable, "-m", __name__, "--port", str(port), "--state", str(folder), "--with-parent"]
    with (folder / "hosted.log").open("ab") as log:
        process = subprocess.Popen(
            [*argv, *(["--amqp", amqp] if amqp else [])], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        _wait(found, process, start_s)
        yield found
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)


def _wait(found: Hosted, process: subprocess.Popen[bytes], start_s: float) -> None:
    end = time.monotonic() + start_s
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError, urllib.error.URLError):
            found.ask("GET", "health")
            return
        time.sleep(0.05)
    raise TimeoutError("The emulated services did not start:\n" + (found.state / "hosted.log").read_text()[-4000:])


def serve(*, port: int, state: Path, amqp: str = "") -> None:
    """Serve all parts that there are, in threads, until the process ends."""
    from flask import Flask
    from werkzeug.serving import WSGIRequestHandler, make_server

    from filmloop.testing.globus.control import watch
    from filmloop.testing.globus.hub import Hub

    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    hub = Hub(url=f"http://127.0.0.1:{port}", state=state, amqp=amqp)
    app = Flask("filmloop.testing.globus")
    watch(app, hub)
    for part in PARTS:
        name = f"filmloop.testing.globus.{part}"
        if importlib.util.find_spec(name):
            app.register_blueprint(importlib.import_module(name).blueprint(hub))
    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _main() -> None:
    parser = argparse.ArgumentParser(description="The hosted services of Globus, emulated on loopback.")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--amqp", default="")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    if args.with_parent:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    serve(port=args.port, state=args.state, amqp=args.amqp)


if __name__ == "__main__":
    _main()
