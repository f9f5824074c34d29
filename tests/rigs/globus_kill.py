"""A caller of the Globus mover that is killed at one exact point: `python -m rigs.globus_kill` reads calls from stdin.

It forks for each of them, so that a kill costs no start of an interpreter. Points are counted from 1: before each write to
the journal, after each request that changes something, before and after files at home get their names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filmloop.adapters.globus.transfer import movetask
from filmloop.adapters.globus.transfer.client import Transfer
from filmloop.adapters.globus.transfer.mover import GlobusMover
from filmloop.config.globus import GlobusMover as MoverSection
from filmloop.config.globus import GlobusSection
from filmloop.core import fsio
from filmloop.testing.contracts.mover import ended
from rigs.globus_faults import Scenario

REQUESTS = ("submission_id", "submit", "mkdir", "rename")


class Caller:
    """The process that forks callers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, scenario: Scenario, at: int | str, **limits: Any) -> dict[str, Any]:
        """Have a caller move the files, and kill it at a point, by number or name; 0 lets it live."""
        assert self._process.stdin
        assert self._process.stdout
        site = scenario.site
        asked = {
            "at": at,
            "section": site.section.model_copy(update=limits).model_dump(mode="json"),
            "globus": site.globus.model_dump(mode="json"),
            "edge": str(site.edge),
            "cluster": str(site.cluster),
            "journal": str(site.journal),
            "direction": scenario.direction,
            "key": scenario.key,
            "files": {name: data.hex() for name, data in scenario.files.items()},
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


@contextmanager
def caller() -> Iterator[Caller]:
    """Start it; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rigs.globus_kill"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Caller(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(30)
        assert process.stdout
        process.stdout.close()


class _Points:
    def __init__(self, at: int | str, seen: int) -> None:
        self._at, self._seen, self._count = at, seen, 0

    def pass_by(self, name: str) -> None:
        self._count += 1
        os.write(self._seen, f"{name}\n".encode())
        if self._at in (self._count, name):
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, method: str, *, before: Callable[..., str] | None, after: str = "") -> None:
        real = getattr(owner, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                self.pass_by(before(*args))
            result = real(*args, **kwargs)
            if after:
                self.pass_by(after)
            return result

        setattr(owner, method, wrapped)


def _writing(path: Path, *_: Any) -> str:
    return "before writing " + re.sub(r"\.\d+-\d+\.part$", "", path.name)


def _run(asked: dict[str, Any], seen: int) -> None:
    points = _Points(asked["at"], seen)
    points.wrap(fsio, "atomic_write_bytes", before=_writing)
    points.wrap(movetask, "settle", before=lambda *_: "before placing", after="after placing")
    for name in REQUESTS:
        points.wrap(Transfer, name, before=None, after=f"after {name}")
    section = MoverSection.model_validate(asked["section"])
    mover = GlobusMover(
        section=section,
        globus=GlobusSection.model_validate(asked["globus"]),
        edge_root=Path(asked["edge"]),
        journal=Path(asked["journal"]),
        site="emulated",
    )
    files = {name: bytes.fromhex(data) for name, data in asked["files"].items()}
    handle = mover.submit(asked["direction"], Scenario.items_of(files), key=asked["key"])
    ended(mover, handle)
    mover.close()


def _serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            try:
                _run(asked, write)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as names:
            passed = names.read().splitlines()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "code": status, "points": passed}), flush=True)


if __name__ == "__main__":
    _serve()
