"""The real endpoint daemon of Globus Compute, started beside a test and pointed at the emulated services.

Two generations of processes: the core endpoint, which is registered, and user endpoints, which it starts on demand, one
for each set of options; their workers are below them, or in Slurm's jobs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filmloop.adapters.local.held import hold
from filmloop.core.retry import wait_until
from filmloop.testing import processes
from filmloop.testing.globus.hosted import Hosted

PREFIX = "filmloop-endpoint-"
NAME = "cluster"
HEARTBEAT_S = 5
"""The least that the daemon accepts."""
START_S = 90.0
"""It is online 3 s after its start on an idle machine."""
CLIENT_ID = "c0ffee00-0000-4000-8000-000000000001"
"""The application that registers the endpoint, and may use it."""
SECRET = "an-endpoint-secret"
_CONFIG = f"""\
display_name: {NAME}
email: operator@example.org
heartbeat_period: {HEARTBEAT_S}
"""
"""Without `debug`: what the daemon's threads then write while it forks can leave the lock of their log held in the child, which
hangs for ever before it becomes a user endpoint, and is taken for one that runs (globus-compute-endpoint 4.19). Seen once without it, too."""
FILES = Path(__file__).parents[2] / "site_configs/endpoints"
"""What a site installs on its own endpoint: the template and its schema are used as they are."""
_MARK = "GLOBUS_COMPUTE_USER_DIR"
_CHILDHOOD_S = 2.0
"""Longest that a child of the core endpoint is still the core endpoint's image."""


_ALWAYS: dict[str, Any] = {"heartbeat_period": HEARTBEAT_S, "idle_heartbeats": 1000}
_QUICK: dict[str, Any] = {"interface": "lo", "strategy_period": 1, "worker_heartbeat": 5, **_ALWAYS}
_QUEUED: dict[str, Any] = {"engine": "slurm", "walltime": "00:10:00", "exclusive": False, "gpus_per_node": 4, **_QUICK}
ENGINES: dict[str, dict[str, Any]] = {
    "threads": {"engine": "control", "workers": 8, **_ALWAYS},
    "control": {"engine": "control", "workers": 2, **_ALWAYS},
    "processes": {"engine": "processes", "workers": 2, **_ALWAYS},
    "pool": {"engine": "local", **_QUICK},
    "slurm": _QUEUED,
    "slurm-mpi": {**_QUEUED, "mpi": True, "nodes_per_block": 2},
}
"""Options of the template, by engine, for one machine that plays the cluster."""


class Endpoint:
    """A core endpoint; see `endpoint`.

    Attributes:
        folder: Of this rig: configuration, logs and the folders that tasks run in.
        id: The identifier that the service gave it, '' before its first start.
        environ: What the SDK needs to reach the services as the endpoint's owner, beside a process's own environment.
    """

    def __init__(self, folder: Path, hosted: Hosted, environ: Mapping[str, str]) -> None:
        self.folder, self._hosted = folder, hosted
        self._conf = folder / "compute" / NAME
        self._conf.mkdir(parents=True)
        (folder / "work").mkdir()
        self.environ = {
            **hosted.environ,
            "GLOBUS_COMPUTE_CLIENT_ID": CLIENT_ID,
            "GLOBUS_COMPUTE_CLIENT_SECRET": SECRET,
            # Longer than a submit waits for a user endpoint.
            "GLOBUS_SDK_HTTP_TIMEOUT": "60",
        }
        self._daemon: subprocess.Popen[bytes] | None = None
        self._hurt = False
        (self._conf / "config.yaml").write_text(_CONFIG)
        for name in ("user_config_template.yaml.j2", "user_config_schema.json"):
            shutil.copy(FILES / name, self._conf / name)
        self._write_environment(environ)

    @property
    def id(self) -> str:
        """See the class."""
        path = self._conf / "endpoint.json"
        text = path.read_text() if path.exists() else ""  # empty for the moment in which the daemon writes it
        return str(json.loads(text)["endpoint_id"]) if text else ""

    def start(self) -> None:
        """Start the daemon and wait until the service knows that it is online."""
        # It would think for three heartbeats that a killed predecessor lives; so would its user endpoints.
        for path in (self.folder / "compute").glob("*/*.pid"):
            path.unlink()
        self._daemon = processes.start(
            [str(Path(sys.executable).with_name("globus-compute-endpoint")), "start", NAME],
            environ={**os.environ, **self.environ, _MARK: str(self.folder / "compute"), "HOME": str(self.folder)},
            log=self.folder / "core.log",
            cwd=self.folder,
        )
        wait_until(self._online, deadline_s=START_S, what="the endpoint", hint=f"Logs are in {self.folder}.", cap_s=0.2)

    def stop(self) -> None:
        """End it as an operator does, user endpoints and workers included."""
        if self._daemon:
            self._daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._daemon.wait(20)
            self.kill()

    def kill(self) -> None:
        """SIGKILL the core endpoint alone; its user endpoints notice that within a second or two."""
        self._hurt = True
        if self._daemon:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def restore(self, afresh: bool = False) -> None:
        """See to it that it runs, and that nothing is left of what was killed; `afresh`: of nothing that ran before."""
        self._end_stuck()
        if afresh or self._hurt or self._daemon is None or self._daemon.poll() is not None or not self.online():
            self.stop()
            kill_all(self.folder)
            self.start()
            self._hurt = False

    def close(self) -> None:
        """End everything of the rig and remove its folder."""
        self.stop()
        kill_all(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def online(self) -> bool:
        """Whether the service counts it as online."""
        return self.id in self._hosted.ask("GET", "compute")["online"]

    def user_endpoints(self) -> list[int]:
        """Process ids of the user endpoints. Workers that they forked have the same title, but lead no session."""
        return [pid for pid in self._titled() if _leads(pid)]

    def workers(self) -> list[int]:
        """Process ids of all that is below the user endpoints: what starts workers, workers, what tasks started."""
        own = {*self.user_endpoints(), self._daemon.pid if self._daemon else 0}
        return [pid for pid in self.processes() if pid not in own]

    def kill_user_endpoints(self) -> None:
        """SIGKILL them; a pool of workers and what tasks started are left alone.

        Not for the engine `processes`: a forked worker that outlives its user endpoint keeps the connection to the broker
        open, and so the queue in exclusive use; the next one gives the queue up after three tries and takes no task.
        """
        self._hurt = True
        for pid in self.user_endpoints():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Ids of all processes of the rig."""
        return sorted(_processes(self.folder))

    def story(self, tail: int = 1500) -> str:
        """For somebody who looks at a failed test: processes, with what each of them waits for, and the end of every log."""
        found = [f"{pid} below {processes.parent(pid)} {_waits(pid)}: {processes.words(pid)}" for pid in self._all()]
        return "\n".join([*found, *(f"== {path}\n{path.read_text(errors='replace')[-tail:]}" for path in self._logs())])

    def logs(self) -> str:
        """What all of it wrote."""
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in self._logs())

    def _logs(self) -> list[Path]:
        paths = [self.folder / "core.log", *sorted((self.folder / "compute").rglob("*.log"))]
        return [path for path in paths if path.exists()]

    def _all(self) -> list[int]:
        """What `processes` finds, and the core's children that are not user endpoints yet: they bear no mark."""
        return sorted({*self.processes(), *self._children()})

    def _children(self) -> set[int]:
        core = self._daemon.pid if self._daemon else -1
        return {int(name) for name in os.listdir("/proc") if name.isdigit() and processes.parent(int(name)) == core}

    def _end_stuck(self) -> None:
        """Kill children that hang before they become user endpoints, see `_CONFIG`: they are taken for some that run."""
        end_s = time.monotonic() + _CHILDHOOD_S
        while young := self._children() - set(self._titled()):
            if time.monotonic() > end_s:
                for pid in young:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.1)

    def _titled(self) -> list[int]:
        return [pid for pid in self.processes() if f"uep.{self.id}." in processes.words(pid)]

    def _online(self) -> bool | None:
        if self._daemon is not None and self._daemon.poll() is not None:
            raise RuntimeError(f"the endpoint ended with {self._daemon.returncode}:\n{self.logs()[-3000:]}")
        return True if self.online() else None

    def _write_environment(self, environ: Mapping[str, str]) -> None:
        """For user endpoints: as root the daemon clears the environment that it starts them in."""
        known = {
            "HOME": str(self.folder),
            _MARK: str(self.folder / "compute"),
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "CWD": str(self.folder / "work"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "OMP_NUM_THREADS": "1",
            **environ,
            "PATH": f"{Path(sys.executable).parent}:{environ.get('PATH', '/usr/bin:/bin')}",
        }
        (self._conf / "user_environment.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in known.items()))


@contextmanager
def endpoint(hosted: Hosted, *, environ: Mapping[str, str] | None = None) -> Iterator[Endpoint]:
    """Run an endpoint for the block.

    Args:
        hosted: The emulated services, with a broker.
        environ: Additions to the environment of user endpoints, and so of workers.

    Raises:
        TransientError: it did not come up.
    """
    processes.sweep(PREFIX, kill_all)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with hold(folder / processes.OWNER):
        made = Endpoint(folder, hosted, environ or {})
        try:
            made.start()
            yield made
        finally:
            made.close()


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _waits(pid: int) -> str:
    """What the kernel says that the process waits for ("futex_wait_queue", "0" if it runs)."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return "gone"


def _processes(folder: Path) -> set[int]:
    return {*processes.below(folder), *(pid for pid, _ in processes.marked(f"{_MARK}={folder}/compute"))}


def kill_all(folder: Path) -> None:
    """SIGKILL every process of the rig in `folder`."""
    processes.kill(lambda: _processes(folder))
