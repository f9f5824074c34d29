"""Runs a module in a process forked from the warm worker, for a caller who holds the line: the keeper between the two.

    caller                           keeper                  module
    its standard input and output    forks                   runs as `python -m` would run it
    closes the line, or says a word  kills it
                                     tells the exit code     ends

The module dies with its keeper, and is killed when the caller dies.
"""

from __future__ import annotations

import os
import runpy
import select
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from filmloop.adapters.local.workerline import send
from filmloop.core.forking import close_inherited, fork


def keep(line: socket.socket, module: str, args: Sequence[str], stdin: int, output: int) -> None:
    """Run `module` until it ends or the caller wants no more of it. For a process of its own, that has the caller's place."""

    def work() -> None:
        for mine, theirs in ((0, stdin), (1, output), (2, output)):
            os.dup2(theirs, mine)
        close_inherited()
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the worker's own may be closed
        sys.argv = [module, *args]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    child = fork(work)
    for fd in (stdin, output):
        os.close(fd)
    pidfd = os.pidfd_open(child.pid)
    with suppress(OSError):  # a caller that died is seen below
        send(line, {"pid": child.pid})
    ready, _, _ = select.select([pidfd, line.fileno()], [], [])
    if pidfd not in ready:
        child.kill()
    code = child.wait()
    with suppress(OSError):
        send(line, {"ended": code})
