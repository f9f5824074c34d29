"""The loop between two facilities: real SDKs, a real broker, a real endpoint, real torchrun ranks, a real registry.

The hosted services of Globus are emulated over their wire protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filmloop.core.documents import TrainResult
from rigs.facilities import SECRETS, Facilities
from rigs.globus import Compute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def went_round(site: Facilities) -> dict[str, Any]:
    """Prepare, retrain with an edge at work, and see that everything arrived where it belongs, once."""
    site.prepare()
    before = len(site.tasks())
    report = site.json("retrain")
    assert (report["outcome"], report["version"], report["base_version"]) == ("promoted", "2", "1"), report["message"]
    assert report["turnaround_s"] > 0, "a running edge took it"
    result = TrainResult.read(site.home.cycles / report["cycle_id"] / "bundle" / "result.json")
    assert (result.status, result.steps) == ("completed", 10)
    directions = [task["asked"]["source_endpoint"] for task in site.tasks()[before:]]
    assert directions == site.collections, "one task with the data and the weights, one with the bundle"
    assert all(task["status"] == "SUCCEEDED" for task in site.tasks())
    assert not list((site.cluster / ".incoming").rglob("*.zarr")), "all of it is in its place"
    status = site.json("status")
    assert (status["champion"]["version"], status["last_cycle"]["outcome"]) == ("2", "promoted")
    return report | {"world_size": result.world_size}


def test_a_cycle_with_workers_beside_the_endpoint(filmloop: Any, compute: Compute, tmp_path: Path) -> None:
    report = went_round(Facilities(filmloop, compute, tmp_path, engine="processes"))
    assert report["world_size"] == 2
    print({name: round(seconds, 2) for name, seconds in report["steps"].items()})


def test_a_cycle_through_a_queue_of_two_nodes(filmloop: Any, slurm_compute: Compute, tmp_path: Path) -> None:
    report = went_round(Facilities(filmloop, slurm_compute, tmp_path, engine="slurm"))
    assert report["world_size"] == 2
    print({name: round(seconds, 2) for name, seconds in report["steps"].items()})


def test_a_cycle_whose_ranks_are_on_two_nodes(filmloop: Any, slurm_compute: Compute, tmp_path: Path) -> None:
    report = went_round(Facilities(filmloop, slurm_compute, tmp_path, engine="slurm-mpi", nodes=2))
    assert report["world_size"] == 2
