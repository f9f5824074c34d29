"""A real MLflow server for tests, started once a test process and stopped at its end."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from filmloop.adapters.mlflow.server import ensure_server, stop_server
from filmloop.config.paths import Home
from filmloop.config.schema import MlflowRegistry


def free_port() -> int:
    """A loopback port that nobody listens on now, below those that Linux gives to outgoing connections.

    One that the kernel chose could go to some client the moment that its server is killed.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return int(probe.getsockname()[1])


@functools.cache
def shared_server() -> str:
    """Address of the server that all tests of this process share; use a model name of your own."""
    folder = Path(tempfile.mkdtemp(prefix="filmloop-mlflow-"))
    home = Home(folder)

    def end() -> None:
        stop_server(home)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return ensure_server(home, MlflowRegistry(port=free_port()))
