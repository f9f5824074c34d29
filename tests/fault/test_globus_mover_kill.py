"""SIGKILL of the process that calls the Globus mover, at every point of a move: one task, every file once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filmloop.ports.mover import Direction
from rigs.globus_faults import Scenario
from rigs.globus_kill import Caller, caller
from rigs.globus_mover import GlobusRig, GlobusSite, globus_rig

Record = Callable[[str, object], None]
KIND = "Globus mover, SIGKILL"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


@pytest.fixture(scope="module")
def killer(rig: GlobusRig) -> Iterator[Caller]:
    with caller() as found:
        yield found


def prepared(site: GlobusSite, direction: Direction) -> Scenario:
    """A move whose target has one of the files already, with other bytes."""
    scenario = Scenario(site=site, direction=direction)
    old = scenario.target / "there/s/a.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"an older manifest")
    return scenario


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "points"), [("to_cluster", 16), ("to_edge", 9)])
def test_a_kill_at_any_point_leaves_one_task_and_every_file_once(
    rig: GlobusRig, killer: Caller, tmp_path: Path, record_property: Record, direction: Direction, points: int
) -> None:
    with rig.site(tmp_path / "undisturbed") as site:
        whole = killer.call(prepared(site, direction), 0)
        assert not whole["killed"]
    assert len(whole["points"]) >= points, whole["points"]
    for number, name in enumerate(whole["points"], 1):
        with rig.site(tmp_path / str(number)) as site:
            scenario = prepared(site, direction)
            killed = killer.call(scenario, number)
            assert killed["killed"], f"nobody was killed {name}"
            assert killed["points"][-1] == name
            assert scenario.run().state == "succeeded", name
            scenario.check()
        record_property("scenario", KIND)


@pytest.mark.parametrize("point", ["after submission_id", "before writing attempt-0001.json", "after submit"])
def test_a_caller_that_comes_back_after_its_tasks_deadline_looks_for_the_task_first(
    rig: GlobusRig, killer: Caller, tmp_path: Path, record_property: Record, point: str
) -> None:
    with rig.site(tmp_path) as site:
        scenario = Scenario(site=site)
        assert killer.call(scenario, point, task_deadline_s=61.0)["killed"]
        time.sleep(1.5)  # a document so close to its deadline, a minute, is not sent any more
        assert scenario.run().state == "succeeded"
        scenario.check()
    record_property("scenario", KIND)


def test_two_callers_that_are_killed_one_after_the_other_leave_one_task(
    rig: GlobusRig, killer: Caller, tmp_path: Path, record_property: Record
) -> None:
    with rig.site(tmp_path) as site:
        scenario = Scenario(site=site)
        for point in ("after submit", "after submit", "after rename"):
            assert killer.call(scenario, point)["killed"]
        assert scenario.run().state == "succeeded"
        scenario.check()
    record_property("scenario", KIND)
