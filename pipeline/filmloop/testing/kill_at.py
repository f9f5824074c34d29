"""Run the real command line and SIGKILL it at one exact point of the journal.

    python -m filmloop.testing.kill_at train:handled -- retrain --json

Points are `<step>:<moment>`, with the moments
    begun     the intent is journalled, nothing is done
    handled   the remote call has returned and its handle is journalled
    undone    the step has had its effect, its result is not journalled
    done      the result is journalled
and `alias:begun`, `alias:undone` around an alias move, and `cycle:undone` before the cycle is closed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from filmloop.cli.main import run
from filmloop.ledger import Ledger


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(method: str, *, before: Callable[..., bool] | None = None, after: Callable[..., bool] | None = None) -> None:
    real = getattr(Ledger, method)

    def wrapped(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        if before is not None and before(*args):
            _die()
        result = real(self, *args, **kwargs)
        if after is not None and after(*args):
            _die()
        return result

    setattr(Ledger, method, wrapped)


def arm(point: str) -> None:
    """Make the ledger of this process deadly at `point`."""
    step, moment = point.split(":")
    if step == "alias":
        _wrap("begin_move", after=lambda *_: moment == "begun")
        _wrap("end_move", before=lambda *_: moment == "undone")
    elif step == "cycle":
        _wrap("finish_cycle", before=lambda *_: moment == "undone")
    else:
        _wrap("begin_step", after=lambda _cycle, name: (name, moment) == (step, "begun"))
        _wrap("keep_handle", after=lambda _cycle, name, _handle: (name, moment) == (step, "handled"))
        _wrap(
            "end_step",
            before=lambda _cycle, name, *_: (name, moment) == (step, "undone"),
            after=lambda _cycle, name, *_: (name, moment) == (step, "done"),
        )


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.argv = ["filmloop", *sys.argv[3:]]
    run()
