"""The loop from the command line, all parts real: edge process, torchrun, MLflow server, simulated and recorded frames."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from filmloop.config.paths import Home
from filmloop.core.errors import TransientError
from filmloop.edge.lock import only_edge
from filmloop.ledger import Ledger
from filmloop.testing.mlflow_server import free_port, shared_server

pytestmark = pytest.mark.timeout(900)  # whole loops: on a busy machine they take their time

RETRAIN_KEYS = {"cycle_id", "outcome", "version", "base_version", "turnaround_s", "overhead_s", "steps", "gate"}
STATUS_KEYS = {"champion", "edge", "last_cycle", "shards", "registry", "worker"}
EDGE_KEYS = {
    "frames_in", "frames_inferred", "frames_staged", "frames_dropped", "rate_hz", "latency_p50_ms", "latency_p99_ms",
    "version", "swaps",
}  # fmt: skip
# Limits in steps, not seconds: a slow machine must come to the same end. 500 steps beat the Gaussian by 2 to 3 %.
STEPS = ("training.hyper.max_steps=500", "training.hyper.train_s=500")


@pytest.fixture(scope="module")
def site(filmloop: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("loop")
    command = filmloop(
        home, *STEPS, f"registry.uri={shared_server()}", "model.registered_as=loop", "launcher.warm=true"
    )
    yield command
    command.run("worker", "stop")


@pytest.fixture(scope="module")
def first(site: Any) -> dict[str, Any]:
    return site.json("retrain")  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_first_cycle_ends_with_a_champion_that_a_running_edge_serves(site: Any, first: dict[str, Any]) -> None:
    assert set(first) >= RETRAIN_KEYS
    assert (first["outcome"], first["version"], first["base_version"]) == ("promoted", "1", ""), first["message"]
    assert first["gate"]["against"] == "gaussian"
    assert first["turnaround_s"] > 0
    assert 0 < first["overhead_s"] < sum(first["steps"].values()) - first["steps"]["frames"]
    status = site.json("status")
    assert set(status) >= STATUS_KEYS
    assert (status["champion"]["version"], status["edge"]["version"]) == ("1", "1")
    assert not status["edge"]["alive"], "the edge that the cycle started is gone"
    assert status["last_cycle"]["outcome"] == "promoted"
    assert status["worker"] == {"warm": True, "alive": True}, "it waits for the next cycle"


@pytest.mark.slow
def test_every_frame_of_the_cycle_is_accounted_for(site: Any, first: dict[str, Any]) -> None:
    edge = site.json("status")["edge"]
    assert set(edge) >= EDGE_KEYS
    assert edge["frames_in"] > 6000
    assert edge["frames_in"] == edge["frames_inferred"] + sum(edge["frames_dropped"].values())
    assert edge["frames_in"] == edge["frames_staged"] + sum(edge["frames_unstaged"].values())
    assert edge["frames_inferred"] > 0, "frames that came after the swap"
    assert edge["swaps"] == 1
    shards = site.json("shards", "list")["shards"]
    assert sum(shard["frames"] for shard in shards) == edge["frames_staged"]
    assert "1" in shards[-1]["model_versions"]


@pytest.mark.slow
def test_the_registry_tells_what_the_version_is_made_of(site: Any, first: dict[str, Any]) -> None:
    version = site.json("models", "show", "champion")
    assert "held-out" in version["description"]
    assert {"nll", "nll_gaussian"} <= set(version["metrics"])
    lineage = json.loads(version["tags"]["filmloop.lineage"])
    assert all(shard_id.startswith("simulator/run") for shard_id in lineage)
    assert json.loads(version["tags"]["filmloop.config"])["model"]["name"] == "mixer"
    assert json.loads(version["tags"]["filmloop.zoo"]) == {"champion": "", "base": "", "frames": 0, "scored": {}}
    assert json.loads(version["tags"]["filmloop.data"])["hits"] > 0


@pytest.mark.slow
def test_the_next_cycle_goes_on_from_the_champion_and_a_rollback_brings_it_back(
    site: Any, first: dict[str, Any]
) -> None:
    second = site.json("retrain", "--no-edge", "--again", "--set", "training.hyper.max_steps=20")
    assert (second["base_version"], second["version"]) == ("1", "2")
    site.json("models", "promote", "2", "--why", "for the test")
    assert "champion already: nothing was moved" in site.run("models", "promote", "2").stdout
    zoo = site.json("models", "zoo")
    assert (zoo["champion"], zoo["left_out"]) == ("2", {})
    assert {each["version"] for each in zoo["candidates"]} == {"1", "2"}
    assert all(each["distance"] < 1 and each["own_over_zero_low"] > 0 for each in zoo["candidates"]), "the same beam"
    move = site.json("models", "rollback")
    assert (move["from_version"], move["to_version"]) == ("2", "1")
    history = site.json("models", "history")["moves"]
    assert [(m["from_version"], m["to_version"]) for m in history] == [("2", "1"), ("1", "2"), ("", "1")]
    assert [row["outcome"] for row in site.json("history")["cycles"]] == [second["outcome"], "promoted"]


@pytest.mark.slow
def test_nothing_to_train_on_is_no_failure(site: Any, first: dict[str, Any], tmp_path: Path, filmloop: Any) -> None:
    empty = filmloop(tmp_path, f"registry.uri={shared_server()}", "model.registered_as=empty")
    assert empty.json("retrain", "--no-edge")["outcome"] == "nothing_to_do"


def test_a_second_cycle_while_one_runs_says_so_and_exits_0(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(tmp_path / "home", f"registry.uri={shared_server()}")
    with Ledger(Home(tmp_path / "home").ledger) as ledger, ledger.cycle_lock() as free:
        assert free
        assert command.json("retrain")["outcome"] == "busy"


@pytest.mark.slow
def test_of_two_cycles_started_together_one_runs_and_one_is_busy(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(
        tmp_path / "home", f"registry.uri={shared_server()}", "model.registered_as=together", "training.min_frames=1000",
        "training.hyper.max_steps=5", "model.hyper.features=8",
    )  # fmt: skip
    both = [command.start("retrain", "--json") for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    outcomes = sorted(json.loads(out)["outcome"] for out, _ in said)
    assert outcomes[0] == "busy"
    assert outcomes[1] in ("promoted", "refused", "undecided")


@pytest.mark.slow
def test_an_edge_started_for_a_cycle_ends_when_the_cycle_is_killed(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(
        tmp_path / "home",
        f"registry.uri={shared_server()}",
        "model.registered_as=orphan",
        "training.min_frames=1000000",
    )
    cycle = command.start("retrain", "--json")
    end = time.monotonic() + 90
    while (command.json("status")["edge"] or {}).get("frames_in", 0) < 500 and time.monotonic() < end:
        time.sleep(0.2)
    assert command.json("status")["edge"]["alive"]
    cycle.kill()
    cycle.communicate()
    while command.json("status")["edge"]["alive"] and time.monotonic() < end:
        time.sleep(0.2)
    edge = command.json("status")["edge"]
    assert (edge["alive"], edge["state"]) == (False, "stopped"), "it saw its parent go, and stopped cleanly"
    assert edge["frames_in"] == edge["frames_staged"]


@pytest.mark.parametrize("words", [("--version",), ("status",), ("history",), ("shards", "list")])
def test_looking_imports_neither_torch_nor_mlflow_nor_zarr(
    filmloop: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    command = filmloop(tmp_path)
    script = (
        "import atexit, sys\n"
        "heavy = lambda: sys.stderr.write('HEAVY ' + ' '.join({'torch', 'mlflow', 'zarr', 'matplotlib'} & set(sys.modules)))\n"
        "atexit.register(heavy)\nfrom filmloop.cli.main import run\nrun()"
    )
    argv = [sys.executable, "-c", script, *words] + ([] if words == ("--version",) else command.argv()[-2:])
    done = subprocess.run(argv, env=command.env(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.endswith("HEAVY ")


def test_a_second_edge_is_refused_before_it_says_that_it_runs(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(tmp_path)
    with only_edge(Home(tmp_path)):
        refused = command.run("edge", "run", "--no-registry", code=TransientError.exit_code)
    assert refused.stderr.startswith("TransientError An edge already runs"), refused.stderr
    said = command.run("edge", "run", "--no-registry", "--frames", "100").stderr
    assert said.startswith("edge at site local, stream simulator; ")


def test_a_cycle_without_a_sender_says_at_once_whom_it_waits_for_and_until_when(filmloop: Any, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    cycle = filmloop(tmp_path, "registry.uri=http://127.0.0.1:9").start("retrain", "--source", f"zeromq:{address}")
    line = next(line for line in iter(cycle.stderr.readline, "") if "  frames " in line or "hint" in line)
    cycle.send_signal(signal.SIGINT)
    cycle.communicate(timeout=60)
    assert cycle.returncode == 130
    assert f"0 of 6,000 fresh frames, waiting for a raw ZeroMQ sender that listens at {address}; gives up in" in line
    assert 100 < float(line.split()[-2]) <= 120


def test_sigterm_while_a_pool_of_frames_is_drawn_stops_the_edge_quickly_and_quietly(
    filmloop: Any, tmp_path: Path
) -> None:
    command = filmloop(tmp_path)
    edge = command.start("edge", "run", "--no-registry", "--source", "simulator?rate_hz=1000&pool_frames=400000")
    end = time.monotonic() + 60
    while (command.json("status")["edge"] or {}).get("state") != "running" and time.monotonic() < end:
        time.sleep(0.1)
    begun_s = time.monotonic()
    edge.terminate()
    _, err = edge.communicate(timeout=60)
    assert edge.returncode == 0, err
    assert "ERROR" not in err
    assert time.monotonic() - begun_s < 3, "with others at work"


def test_sigterm_stops_the_edge_cleanly_with_every_frame_staged(filmloop: Any, tmp_path: Path) -> None:
    command = filmloop(tmp_path, "source.rate_hz=500")
    edge = command.start("edge", "run", "--no-registry", "--json")
    end = time.monotonic() + 60
    while (command.json("status")["edge"] or {}).get("frames_in", 0) < 300 and time.monotonic() < end:
        time.sleep(0.1)
    edge.terminate()
    out, err = edge.communicate(timeout=30)
    assert edge.returncode == 0, err
    status = json.loads(out)
    assert status["state"] == "stopped"
    assert status["frames_in"] == status["frames_staged"] == sum(status["frames_dropped"].values()) >= 300
    assert command.json("shards", "verify")["damaged"] == {}
