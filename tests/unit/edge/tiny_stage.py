"""A stage in a process of its own, for tests of the supervisor: `python tiny_stage.py PLACE RING`.

What it does stands on the ring's page, by role.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from filmloop.core.errors import ConfigError, TransientError
from filmloop.edge.hosts import take_over
from filmloop.edge.ring import SEATS, STANDBY, FrameRing
from filmloop.edge.stages.base import Stage
from filmloop.edge_stage import run_stage


class TinyStage(Stage):
    """Handles no frames; ends well, badly, late or never."""

    def __init__(self, role: str, ring: FrameRing, behaviour: str) -> None:
        super().__init__(role, ring)
        self.behaviour, self.cell = behaviour, getattr(ring, "inference" if role in SEATS else role)

    def run(self) -> None:
        """As the behaviour says."""
        if self.behaviour == "does not come up":
            time.sleep(60)
        if self.behaviour == "dies at its start":
            os._exit(7)
        if self.behaviour == "is away at its start":
            raise TransientError("The ledger is locked.", hint="Wait.")
        self.beat()
        lives = int(self.news._fields.get("lives", 0)) + 1
        self.news.say(lives=lives)
        self.news.publish(at_once=True)
        if self.behaviour == "is killed in each life":
            os.kill(os.getpid(), signal.SIGKILL)
        if lives == 1:
            if self.behaviour == "stops in its first life":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.behaviour == "is killed in its first life":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.behaviour == "is away in its first life":
                raise TransientError("The registry is away.")
        if self.behaviour == "cannot go on":
            raise ConfigError("The frames have another shape.", hint="Correct [frame].", ids={"path": "x.h5"})
        if self.behaviour == "has a bug":
            raise ZeroDivisionError("a bug")
        while not self.is_done():
            self.wait(0.01)
        self.cell.write({**self.cell.read(), "ended": 1})

    def is_done(self) -> bool:
        """Whether it may end: when told to, with the one before it, or as late as its behaviour says."""
        if self.behaviour == "never ends":
            return False
        if self.behaviour == "ends when it is overdue":
            return self.hurried
        if self.ring.role(self.place) == STANDBY:
            return bool(self.ring.inference.get("ended"))
        before = {"inference": self.ring.source, "staging": self.ring.inference}.get(self.place)
        return self.stopping if before is None else bool(before.get("ended"))


def make(role: str, ring: FrameRing) -> Stage:
    """The stage for `role`."""
    return TinyStage(role, ring, ring.spec.read().get(role, "works"))


if __name__ == "__main__":
    taken = take_over(sys.argv[2])
    code = run_stage(sys.argv[1], taken, make)
    os._exit(code)
