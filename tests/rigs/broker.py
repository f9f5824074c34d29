"""A real RabbitMQ for one run of the tests: its own node, ports, cookie and data, on loopback only.

The broker and the name server of its Erlang (epmd) are children of this process, in the foreground; the kernel ends them
when it dies. No root is needed, and a RabbitMQ of the machine's owner is not met. Needs Debian's package rabbitmq-server.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pika.exceptions

from filmloop.adapters.local.held import hold
from filmloop.core.retry import wait_until
from filmloop.testing import processes
from filmloop.testing.mlflow_server import free_port

PREFIX = "filmloop-rabbit-"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program itself: the one in /usr/sbin becomes another user first."""
START_S = 120.0
"""It is there after 4 to 5 s on an idle machine."""
_CONF = """\
loopback_users.guest = true
listeners.tcp.local = 127.0.0.1:{port}
log.console = false
log.file.level = warning
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
"""


def missing() -> str:
    """What the broker needs and this machine does not have; '' if it has all."""
    if not SERVER.is_file():
        return "rabbitmq-server"
    return "" if shutil.which("epmd") else "epmd"


class Broker:
    """A running RabbitMQ; see `broker`.

    Attributes:
        folder: Configuration, data and logs.
        url: Where clients connect to, with the guest's name and password.
        started_s: How long the last start took.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port, self._epmd_port, self._dist_port = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/%2F"
        self.started_s = 0.0
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        (folder / "rabbitmq.conf").write_text(_CONF.format(port=self._port))
        (folder / "enabled_plugins").write_text("[].")

    def start(self) -> None:
        """Start it, or start it again on the same data, and wait until it accepts clients."""
        begun = time.monotonic()
        if self._epmd is None:
            self._epmd = processes.start(
                [str(shutil.which("epmd")), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                environ=self._environ(),
                log=self.folder / "epmd.log",
            )
        self._server = processes.start([str(SERVER)], environ=self._environ(), log=self.folder / "server.log")
        wait_until(self._answers, deadline_s=START_S, what="RabbitMQ", hint=f"Logs are in {self.folder}.", cap_s=0.2)
        self.started_s = time.monotonic() - begun

    def stop(self) -> None:
        """SIGKILL it, as a power cut does; its data stay. Does nothing if it is down."""
        if self._server:
            self._server.kill()
            self._server.wait()
            self._server = None

    def restore(self) -> None:
        """See to it that it runs."""
        if self._server is None or self._server.poll() is not None:
            self.start()

    def close(self) -> None:
        """End everything and remove the folder."""
        self.stop()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()
        kill_all(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool | None:
        if self._server is not None and self._server.poll() is not None:
            raise RuntimeError("RabbitMQ ended:\n" + (self.folder / "server.log").read_text(errors="replace")[-3000:])
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (OSError, pika.exceptions.AMQPConnectionError):  # it listens before it is ready, and hangs up
            return None
        return True

    def _environ(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": folder,
            "RABBITMQ_NODENAME": f"filmloop{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ERL_ARGS": "",
            # One scheduler that does not spin: the tests need the cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Without a shell in between, so that the broker itself is our child.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


@contextmanager
def broker() -> Iterator[Broker]:
    """Run a RabbitMQ for the block.

    Raises:
        TransientError: it did not come up.
    """
    processes.sweep(PREFIX, kill_all)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with hold(folder / processes.OWNER):
        made = Broker(folder)
        try:
            made.start()
            yield made
        finally:
            made.close()


def kill_all(folder: Path) -> None:
    """SIGKILL every process of the rig in `folder`."""
    processes.kill_marked(f"HOME={folder}")
