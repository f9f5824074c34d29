"""SIGKILL of the cycle at every step of its journal: rerunning ends where an undisturbed run ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from filmloop.config.paths import Home
from filmloop.testing.mlflow_server import shared_server
from rigs.kills import MOMENTS, POINTS, cycle_state, kill_at

# 600 frames and ten steps: this is about the journal, not about learning. One rank: the weights are reproducible.
SETS = (
    "source.rate_hz=0", "training.min_frames=500", "training.hyper.warmup_steps=1", "launcher.processes=1",
    "gate.min_frames=10", "gate.min_gain=0", "model.hyper.features=8", "staging.frames_per_shard=300", "zoo.alike=3",
)  # fmt: skip
RETURN_POINTS = [
    f"{step}:{moment}" for step in ("recall", "alias", "promote", "live", "cycle") for moment in MOMENTS[step]
]


class Site:
    """A state folder with staged frames, and the cycle as a process."""

    def __init__(self, make: Any, home: Path, model: str) -> None:
        self.home, self.model = Home(home), model
        self.command = make(home, *SETS, f"registry.uri={shared_server()}", f"model.registered_as={model}")

    def prepare(self) -> None:
        """A champion that has hardly learnt anything, and fresh frames: whatever trains a little longer is better."""
        self._stage()
        first = self.cycle(max_steps=1)
        self.command.run("models", "promote", first["version"])
        self._stage()

    def prepare_return(self) -> None:
        """A champion that has hardly learnt anything, beside a former version that has learnt a little more."""
        self._stage()
        better = self.cycle()
        self.command.run("models", "promote", better["version"])
        self._stage()
        worse = self.cycle(max_steps=1, warm_start=False)
        self.command.run("models", "promote", worse["version"])
        self._stage()

    def _stage(self) -> None:
        self.command.run("edge", "run", "--no-registry", "--frames", "600")

    def cycle(self, max_steps: int = 10, warm_start: bool = True) -> dict[str, Any]:
        sets = (f"training.hyper.max_steps={max_steps}", f"training.warm_start={str(warm_start).lower()}")
        return self.command.json("retrain", "--no-edge", *(word for each in sets for word in ("--set", each)))  # type: ignore[no-any-return]

    def kill_at(self, point: str) -> int:
        sets = ("--set", "training.hyper.max_steps=10", "--set", "training.warm_start=true")
        return kill_at(point, self.command.argv("retrain", "--no-edge", "--json", *sets), self.command.env())

    def state(self) -> dict[str, Any]:
        """All that must not depend on how often the cycle was killed."""
        return {
            **cycle_state(self.home, self.model, self.command.json("models", "list")["versions"]),
            "left on the cluster": sorted(path.name for path in (self.home.cluster / "runs").glob("*")),
        }


@pytest.fixture(scope="module")
def undisturbed(filmloop: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    site = Site(filmloop, tmp_path_factory.mktemp("undisturbed"), "kill-undisturbed")
    site.prepare()
    report = site.cycle()
    return {"outcome": report["outcome"], **site.state()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_every_point_in_turn_and_rerun_it_ends_like_an_undisturbed_run(
    filmloop: Any, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    site = Site(filmloop, tmp_path, "kill-every-point")
    site.prepare()
    killed = [point for point in POINTS if site.kill_at(point) != 0]
    assert killed == POINTS, "every point was reached, each once"
    report = site.cycle()
    print(json.dumps({"kills": len(killed)}), file=sys.stderr)
    assert {"outcome": report["outcome"], **site.state()} == undisturbed


def test_an_undisturbed_run_promotes_so_that_promotion_is_killed_too(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["outcome"] == "promoted"
    assert undisturbed["steps"] == 10
    assert [move for move in undisturbed["moves"] if move[0] == "champion"] == [
        ("champion", "1", "2"),
        ("champion", "", "1"),
    ]
    assert undisturbed["pending"] == []
    assert undisturbed["left on the cluster"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_return_without_training_killed_at_every_point_moves_the_champion_once_and_trains_nothing(
    filmloop: Any, tmp_path: Path
) -> None:
    site = Site(filmloop, tmp_path, "kill-return")
    site.prepare_return()
    killed = [point for point in RETURN_POINTS if site.kill_at(point) != 0]
    assert killed == RETURN_POINTS, "every point was reached, each once"
    report = site.cycle()
    print(json.dumps({"kills of a return": len(killed)}), file=sys.stderr)
    assert (report["outcome"], report["recalled"], report["version"]) == ("promoted", True, "1"), report["message"]
    state = site.state()
    assert state["outcomes"] == ["promoted", state["outcomes"][1], state["outcomes"][2]], "one cycle, resumed"
    assert state["steps"] is None, "nothing was trained"
    assert [move for move in state["moves"] if move[0] == "champion"] == [
        ("champion", "2", "1"),
        ("champion", "1", "2"),
        ("champion", "", "1"),
    ]
    assert state["pending"] == []
    assert set(state["shards"].values()) == {"trained"}
    assert state["folder"] == ["config.json", "summary.json", "verdict.json"]
    assert [version for version, _aliases in state["versions"]] == ["2", "1"]
    assert state["left on the cluster"] == []
