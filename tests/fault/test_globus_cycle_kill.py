"""SIGKILL of a cycle between two facilities at every step of its journal: one task each way, one training, one version."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.compute.launchjournal import LaunchJournal
from filmloop.core.documents import TrainResult
from rigs.facilities import SECRETS, Facilities
from rigs.globus import Compute
from rigs.globus_auth import leaks
from rigs.kills import POINTS, cycle_state, kill_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def survives(site: Facilities, points: list[str]) -> None:
    """Kill a cycle at these points, one after the other, rerun it, and see that it went as if nothing had been."""
    site.prepare()
    before = len(site.tasks())
    argv = site.argv("retrain", "--no-edge", "--json")
    killed = [point for point in points if kill_at(point, argv, site.command.env()) != 0]
    assert killed == points, "every point was reached, each once"
    report = site.json("retrain", "--no-edge")
    print(json.dumps({"kills between two facilities": len(killed)}), file=sys.stderr)
    assert (report["outcome"], report["version"]) == ("promoted", "2"), report["message"]

    state = cycle_state(site.home, site.model, site.json("models", "list")["versions"])
    assert state["outcomes"] == ["promoted", state["outcomes"][1]], "one cycle, resumed"
    assert [move for move in state["moves"] if move[0] == "champion"] == [("champion", "1", "2"), ("champion", "", "1")]
    assert [version for version, _ in state["versions"]] == ["2", "1"]
    assert state["pending"] == []
    assert set(state["shards"].values()) == {"trained"}

    tasks = site.tasks()[before:]
    assert [task["asked"]["source_endpoint"] for task in tasks] == site.collections, "one task each way"
    assert {task["status"] for task in tasks} == {"SUCCEEDED"}
    result = TrainResult.read(site.home.cycles / report["cycle_id"] / "bundle" / "result.json")
    sending = LaunchJournal(site.home.launches).find(report["cycle_id"]).sending()
    assert sending is not None
    found = leaks(site.compute.hosted, site.home.root, site.cluster, also=SECRETS.values())
    assert not found, "a secret or token in the ledger, a journal, a log, a bundle"
    assert (sending.attempt, result.resumed_from_step, result.steps) == (1, 0, 10), "one training"


def test_killed_at_every_point_with_workers_beside_the_endpoint(
    filmloop: Any, compute: Compute, tmp_path: Path
) -> None:
    survives(Facilities(filmloop, compute, tmp_path, engine="processes"), POINTS)


def test_killed_at_every_point_with_a_queue_of_two_nodes(filmloop: Any, slurm_compute: Compute, tmp_path: Path) -> None:
    survives(Facilities(filmloop, slurm_compute, tmp_path, engine="slurm"), POINTS)
