"""The processes of one MLflow server: which ones they are, and how all of them are ended.

The server leads a process group. While its leader runs, which its start time proves, all of the group is the server's. Once
the leader has ended the number proves nothing: after a reboot, or when the last of ours has ended, it may be the
group of some other program whose leader has ended too. Then a process is the server's if it carries the server's token.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from filmloop.adapters.mlflow.processes import members_of, start_ticks
from filmloop.core.environ import environ_of
from filmloop.core.errors import ConfigError

TOKEN = "FILMLOOP_REGISTRY"
"""Environment variable that marks the processes of a server."""

_STOP_S = 10.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerGroup:
    """One server as it was started, whatever is left of it.

    Attributes:
        leader: Process id of its leader, which is the number of the group.
        start_ticks: When the leader was started, in clock ticks since boot; 0 if that was not seen.
        token: Value of `TOKEN` in its processes and no others; '' for a server that was started without one.
    """

    leader: int
    start_ticks: int
    token: str

    def is_led(self) -> bool:
        """Whether the leader runs."""
        return self.start_ticks != 0 and start_ticks(self.leader) == self.start_ticks

    def members(self) -> list[int]:
        """Ids of the server's processes that run."""
        # The group first: if the leader is still there after that, the list is of its group and no later one's.
        found = members_of(self.leader)
        return found if self.is_led() else [pid for pid in found if self._is_marked(pid)]

    def end(self, *, at_once: bool = False) -> None:
        """SIGTERM to all of it, SIGKILL to what that leaves. Returns when nothing is left, or after 20 s.

        `at_once`: SIGKILL alone, for one that serves nobody yet.

        Raises:
            ConfigError: it belongs to another user.
        """
        for number in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
            told: set[int] = set()
            end_s = time.monotonic() + _STOP_S
            while (left := self.members()) and time.monotonic() < end_s:
                for pid in set(left) - told:
                    self._signal(pid, number)
                told.update(left)
                time.sleep(_LOOK_S)
            if not left:
                return

    def _is_marked(self, pid: int) -> bool:
        return self.token != "" and f"{TOKEN}={self.token}".encode() in environ_of(pid)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        except PermissionError as exc:
            raise ConfigError(
                f"The MLflow server of process {self.leader} belongs to another user.",
                hint="That user may end it with `filmloop registry stop`; or point FILMLOOP_HOME at a folder of your own.",
                ids={"pid": str(pid)},
            ) from exc
