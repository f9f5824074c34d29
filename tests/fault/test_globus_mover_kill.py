"""A process that moves files through Globus is killed before and after everything that it writes down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filmloop.ports.mover import Direction, MoveItem
from filmloop.testing.contracts.mover import MoverSite, ended
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig

MOVER = """
import json, os, signal, sys
from pathlib import Path
from filmloop.adapters.globus.mover import GlobusMover
from filmloop.config.globus import GlobusMover as Section, GlobusSection
from filmloop.ports.mover import MoveItem
from filmloop.testing.contracts.mover import ended

# It forks before any thread is there: the imports are paid once.
def run(ask):
    left = ask["writes"]

    def deadly(real):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0 and ask["before"]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args, **kwargs)
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    os.replace, os.link = deadly(os.replace), deadly(os.link)
    mover = GlobusMover(
        section=Section.model_validate(ask["section"]), globus=GlobusSection.model_validate(ask["globus"]),
        edge_root=Path(ask["edge"]), journal=Path(ask["journal"]), site="emulated",
    )
    ended(mover, mover.submit(ask["direction"], [MoveItem(**one) for one in ask["items"]], key=ask["key"]))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
FILES = ("s/1.zarr/zarr.json", "s/1.zarr/counts/c/0", "s/1.manifest.json", "w/result.json")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@contextmanager
def killed_movers() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", MOVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def run(process: subprocess.Popen[str], site: GlobusSite, items: list[MoveItem], **how: object) -> int:
    """The exit code of a process that makes the move; -9 if it was killed on the way."""
    fields = ("source_path", "target_path", "size_bytes", "sha256")
    ask = {
        "section": site.section.model_dump(mode="json"),
        "globus": site.globus.model_dump(mode="json"),
        "edge": str(site.edge),
        "journal": str(site.journal),
        "items": [{name: getattr(item, name) for name in fields} for item in items],
        **how,
    }
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(ask) + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.mark.parametrize("direction", ["to_cluster", "to_edge"])
def test_killed_at_any_write_a_move_goes_on_as_the_same_task_and_places_every_file_once(
    rig: GlobusRig, tmp_path: Path, direction: Direction
) -> None:
    points = 0
    with rig.site(tmp_path) as site, killed_movers() as process:
        sides = MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
        there = site.cluster if direction == "to_cluster" else site.edge
        for writes in range(60):
            codes = []
            for before in (True, False):
                key = f"c{writes}-{'before' if before else 'after'}"
                files = {f"{key}/{name}": os.urandom(100) for name in FILES}
                items = sides.put(direction, files)
                codes.append(run(process, site, items, direction=direction, key=key, writes=writes, before=before))
                mover = site.make()
                status = ended(mover, mover.submit(direction, items, key=key))
                mover.close()
                assert (status.state, status.files_done) == ("succeeded", len(files)), (key, status.detail)
                assert {name: (there / "there" / name).read_bytes() for name in files} == files
                assert len([task for task in site.tasks() if key in task["label"]]) == 1, key
            if codes == [0, 0]:
                break
            assert codes == [-9, -9], codes
            points += 2
    print(f"killed at {points} points: {points} moves, {points} tasks")
    assert points >= 16


def test_the_task_of_a_killed_process_can_still_be_cancelled(rig: GlobusRig, tmp_path: Path) -> None:
    with rig.site(tmp_path) as site, killed_movers() as process:
        sides = MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
        rig.hosted.fault("stall", times=-1, seconds=30)
        items = sides.put("to_cluster", {"f": b"bytes"})
        writes = 0
        while not site.tasks():
            key = f"c{writes}"
            assert run(process, site, items, direction="to_cluster", key=key, writes=writes, before=True) == -9
            writes += 1
        assert json.loads((site.journal / key / "attempt-0001.json").read_text())["tasks"][0]["task_id"] == ""
        mover = site.make()
        mover.cancel(key)
        status = mover.poll(key)
        assert (status.state, status.retryable) == ("failed", True)
        (task,) = site.tasks()
        assert (task["status"], task["fatal_error"]["code"]) == ("FAILED", "CANCELED")
    rig.hosted.reset()
