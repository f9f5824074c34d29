"""Every benchmark runs, prints one JSON line with the keys that the documentation quotes, and can find a lost frame."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filmloop.core.documents import Accounting

CHECKOUT = Path(__file__).parents[2]
BENCHMARKS = CHECKOUT / "benchmarks"
COMMON = {"benchmark", "quick", "date", "command", "machine", "versions"}
KEYS = {
    "edge": {"frames_in", "frames_out", "lost", "rate_hz", "bare_rate_hz", "ratio", "threads"},
    "stage": {"frames_per_cpu_s", "ratio_to_zarr_python", "ratio_to_h5py", "bytes_per_frame"},
    "swap": {"swaps", "lost", "mixed", "p99_ratio"},
    "cycle": {"overhead_cold_s", "overhead_warm_s", "overhead_to_training", "steps_cold", "steps_warm"},
}


def quick_run(name, tmp_path):
    argv = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "it leaves something behind"
    line, *more = done.stdout.splitlines()
    assert more == []
    value = json.loads(line)
    assert set(value) >= COMMON | KEYS[name]
    assert value["benchmark"] == name
    assert value["quick"] is True
    return value


def test_every_benchmark_is_run_below():
    assert {path.stem for path in BENCHMARKS.glob("[!_]*.py")} == set(KEYS)


def test_the_edge_benchmark_loses_nothing(tmp_path):
    value = quick_run("edge", tmp_path)
    assert value["lost"] == 0
    assert value["frames_in"] == value["frames_out"] > 0


def test_the_staging_benchmark_compares_writers_of_the_same_arrays(tmp_path):
    value = quick_run("stage", tmp_path)
    # The peer stores the same codecs: the two differ by attributes, some hundred bytes in 2048 frames, and the manifest.
    assert value["bytes_per_frame"] == pytest.approx(value["bytes_per_frame_zarr"], rel=0.01)
    # 610 hits in 2048 bins pack to about a fifth of a frame; a writer that wrote nothing would be near 0.
    assert 200 < value["bytes_per_frame"] < 1000
    assert 100 < value["bytes_per_frame_h5py"] < 1000


def test_the_swap_benchmark_loses_and_mixes_nothing(tmp_path):
    value = quick_run("swap", tmp_path)
    assert value["lost"] == value["mixed"] == 0
    assert value["swaps"] > 0


@pytest.mark.slow
def test_the_cycle_benchmark_runs_a_cold_and_a_warm_cycle(tmp_path):
    value = quick_run("cycle", tmp_path)
    assert value["overhead_warm_s"] > 0
    for steps in (value["steps_cold"], value["steps_warm"]):
        assert {"setup", "seal", "move", "train", "fetch", "judge", "register"} <= set(steps)
    assert len(value["outcomes"]) == 2
    assert "failed" not in value["outcomes"]


@pytest.fixture
def benchmark_folder(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.usefixtures("benchmark_folder")
@pytest.mark.parametrize(
    ("staged", "inferred", "lost"),
    [
        ([0, 1, 2, 3], 4, 0),
        ([0, 1, 3], 4, 1),
        ([0, 1, 1, 3], 4, 2),
        ([0, 1, 2, 3], 3, 1),
        ([], 0, 8),
    ],
    ids=["all", "not staged", "staged twice, another not", "not inferred", "neither"],
)
def test_a_frame_that_is_missing_twice_there_or_not_inferred_is_found(staged, inferred, lost):
    from _stream import lost_frames

    ids_N = np.array(staged, np.uint64)
    assert lost_frames(ids_N, 4, Accounting(frames_in=4, frames_inferred=inferred)) == lost


@pytest.mark.usefixtures("benchmark_folder")
def test_a_frame_with_the_rates_of_the_other_version_is_found():
    from _stream import PoolSource
    from swap import PROJECTIONS, Judge

    from filmloop.edge.service import EdgeResult

    rng = np.random.default_rng(1)
    rate = {version: rng.normal(size=(8, 4, 16)).astype(np.float32) for version in "12"}
    directions = rng.normal(size=(64, PROJECTIONS)).astype(np.float32)
    expected = {version: values.reshape(8, -1) @ directions for version, values in rate.items()}
    judge = Judge(PoolSource(np.zeros((8, 4, 16), np.uint8)), expected, directions)
    mixture = np.concatenate([rate["1"][:5], rate["2"][5:7], np.full((1, 4, 16), np.nan, np.float32)])
    # Pulse ids 8 to 15 show the pool's frames for the second time.
    for rates, mixed in ((rate["1"], 0), (mixture, 3), (None, 11)):
        judge(
            EdgeResult(
                run_number=1,
                pulse_id_N=np.arange(8, 16, dtype=np.uint64),
                version="1",
                rate_NCE=rates,
                phase_N=np.zeros(8, np.float32),
            )
        )
        assert judge.mixed == mixed


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.name)
def test_a_kept_result_is_a_full_run_of_its_day_that_lost_nothing(path):
    value = json.loads(path.read_text(encoding="utf-8"))
    date, name = re.fullmatch(r"(\d{4}-\d\d-\d\d)-([a-z]+)(?:-[a-z0-9-]+)?\.json", path.name).groups()
    assert (value["date"], value["benchmark"], value["quick"]) == (date, name, False)
    assert set(value) >= COMMON | KEYS[name]
    assert value.get("lost", 0) == value.get("mixed", 0) == 0
    assert value["machine"].keys() >= {"cpu", "cores"}
