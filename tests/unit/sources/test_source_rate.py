"""Frames come at the rate that the site asks for; and the simulator is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from filmloop.adapters.sources import paced
from filmloop.adapters.sources.build import build_source, parse_source_option
from filmloop.adapters.sources.paced import BACKLOG_S, COALESCE_S, Schedule
from filmloop.config.loader import parse_site
from filmloop.config.schema import SimulatorSource
from filmloop.core.errors import ConfigError
from filmloop.core.types import SATURATED
from filmloop.testing.contracts.source import collect, keys_of
from filmloop_models.cookiebox.conditions import Conditions, DriftStep
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

SHAPE = (4, 16)


class Clock:
    """Stands in for the time module: sleeping is instant and adds up."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(paced, "time", clock)
    return clock


def take(schedule: Schedule, max_frames: int, timeout_s: float = 0.2) -> int:
    frames = schedule.wait(max_frames, timeout_s)
    schedule.took(frames)
    return frames


@pytest.mark.parametrize("rate_hz", [0.5, 3.0, 120.0, 2000.0, 1e6])
def test_the_rate_is_held_over_time(clock: Clock, rate_hz: float) -> None:
    schedule, frames = Schedule(rate_hz), 0
    begin_s = clock.now_s
    for _ in range(1000):
        frames += take(schedule, 256 if rate_hz < 1e4 else 100_000)
        clock.now_s += 1e-4
    # One frame more or less at either end.
    assert abs(frames - (clock.now_s - begin_s) * rate_hz) <= rate_hz * COALESCE_S + 1


def test_frames_come_in_steps_not_one_by_one(clock: Clock) -> None:
    # 10 ms of 2000 a second.
    assert [take(Schedule(2000.0), 256) for _ in range(3)] == [20, 20, 20]


def test_a_slow_rate_times_out_empty_and_sleeps_no_longer(clock: Clock) -> None:
    schedule = Schedule(2.0)
    assert [take(schedule, 10, 0.2) for _ in range(5)] == [0, 0, 1, 0, 0]
    assert max(clock.slept) <= 0.2 + 1e-9


def test_a_reader_that_was_away_gets_one_second_of_backlog(clock: Clock) -> None:
    schedule = Schedule(100.0)
    take(schedule, 1)
    clock.now_s += 60
    assert take(schedule, 10_000) == int(100 * BACKLOG_S)
    assert take(schedule, 10_000) == 1


def test_rate_zero_is_as_fast_as_it_can(clock: Clock) -> None:
    assert take(Schedule(0.0), 10_000) == 10_000
    assert clock.slept == []


def test_the_real_clock_agrees() -> None:
    source = build_source(SimulatorSource(rate_hz=1000), SHAPE)
    source.open(after=None)
    begin_s = time.monotonic()
    blocks = collect(source, 500, max_frames=256)
    elapsed_s = time.monotonic() - begin_s
    source.close()
    # 500 frames of 1000 a second; never early, and late only by what a busy machine costs.
    assert 0.49 <= elapsed_s <= 2.5
    assert keys_of(blocks) == [(1, row) for row in range(500)]


def test_the_simulator_gives_its_frames_by_number_whatever_the_reads() -> None:
    drift = (DriftStep(from_frame=100, to_frame=300, set={"gain": 3.0}),)
    section = SimulatorSource(rate_hz=0, seed=9, drift=drift, labelled=True, run_number=2)
    source = build_source(section, SHAPE)
    source.open(after=(2, 199))
    blocks = collect(source, 400, max_frames=111)
    source.close()
    simulated = CookieBoxSimulator(section.conditions, seed=9, drift=drift, frame_shape=SHAPE)
    wanted = simulated.frames(200, 400, truth=True)
    assert keys_of(blocks) == [(2, row) for row in range(200, 600)]
    np.testing.assert_array_equal(np.concatenate([block.counts_NCE for block in blocks]), wanted.counts_NCE)
    np.testing.assert_array_equal(np.concatenate([block.label_NCE for block in blocks]), wanted.rate_NCE)


def test_saturated_frames_are_flagged() -> None:
    # 4000 hits of a pulse over 4 channels and some 5 bins: about 200 a bin, the brighter pulses are above 255.
    bright = Conditions(hits_per_pulse=4000.0, photon_energy_bin=8.0, photon_jitter_bin=0.0, kick_bin=2.0)
    section = SimulatorSource(rate_hz=0, conditions=bright)
    source = build_source(section, SHAPE)
    source.open(after=None)
    (block,) = collect(source, 64)
    source.close()
    full_N = block.counts_NCE.max(axis=(1, 2)) == 255
    assert 0 < full_N.sum() < 64
    np.testing.assert_array_equal(block.flags_N == SATURATED, full_N)


def test_frames_of_another_run_are_not_continued() -> None:
    source = build_source(SimulatorSource(rate_hz=0, run_number=2), SHAPE)
    source.open(after=(1, 5000))
    assert keys_of(collect(source, 2)) == [(2, 0), (2, 1)]
    source.close()


def test_a_drift_that_cannot_be_is_a_config_error() -> None:
    conditions = Conditions(dead_channels=(99,))
    with pytest.raises(ConfigError, match="dead_channels"):
        build_source(SimulatorSource(conditions=conditions), SHAPE).open(after=None)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("simulator", {"kind": "simulator"}),
        ("simulator?rate_hz=500&labelled=true", {"kind": "simulator", "rate_hz": 500, "labelled": True}),
        ("replay:/data/a b.h5", {"kind": "replay", "path": "/data/a b.h5"}),
        (
            "replay:/data/x.h5?loop=true&stream=night",
            {"kind": "replay", "path": "/data/x.h5", "loop": True, "stream": "night"},
        ),
        (
            "zeromq:tcp://127.0.0.1:5555?dialect=lclstreamer&fields.counts=/mrco/dense&fields.run_number=/run&role=bind",
            {
                "kind": "zeromq",
                "endpoints": ["tcp://127.0.0.1:5555"],
                "dialect": "lclstreamer",
                "fields": {"counts": "/mrco/dense", "run_number": "/run"},
                "role": "bind",
            },
        ),
        ("zeromq:tcp://a:1,ipc:///tmp/x", {"kind": "zeromq", "endpoints": ["tcp://a:1", "ipc:///tmp/x"]}),
        (
            "pvaccess:MRCO:Pva1:Image?pulse_id=timeStamp",
            {"kind": "pvaccess", "channel": "MRCO:Pva1:Image", "pulse_id": "timeStamp"},
        ),
        ("replay:/data/C:x.h5?rate_hz=0.5", {"kind": "replay", "path": "/data/C:x.h5", "rate_hz": 0.5}),
    ],
)
def test_a_source_option_is_the_table_of_the_site_file(text: str, table: dict[str, Any]) -> None:
    assert parse_source_option(text) == table
    read = parse_site({"source": table}).source.model_dump(mode="json", include=set(table))
    read |= {"fields": {key: read["fields"][key] for key in table["fields"]}} if "fields" in table else {}
    assert read == table


def test_a_relative_path_counts_from_the_working_directory(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source_option("replay:x.h5")["path"] == str(tmp_path / "x.h5")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epics:PV",
        "replay",
        "replay:",
        "simulator:x",
        "simulator?rate",
        "replay:x?=1",
        "zeromq",
        "pvaccess:",
        "zeromq:tcp://a:1?role=bind&role.x=1",
    ],
)
def test_a_source_option_that_makes_no_sense_shows_examples(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_source_option(text)
    assert "--source" in error.value.hint


@pytest.mark.parametrize(
    ("package", "section"),
    [
        ("zmq", 'ZeroMqSource(endpoints=("tcp://127.0.0.1:1",))'),
        ("hdf5plugin", 'ZeroMqSource(endpoints=("tcp://127.0.0.1:1",), dialect="lclstreamer")'),
        ("p4p", 'PvAccessSource(channel="X")'),
    ],
)
def test_a_library_that_is_not_installed_is_a_config_error_that_says_how_to_get_it(package: str, section: str) -> None:
    # None halts an import as if there were nothing to find; in an interpreter of its own, as modules stay loaded.
    code = f"""
import sys
sys.modules[{package!r}] = None
from filmloop.adapters.sources.build import build_source
from filmloop.config.schema import PvAccessSource, ZeroMqSource
from filmloop.core.errors import ConfigError
try:
    build_source({section}, (4, 16))
except ConfigError as exc:
    print(exc.message, exc.hint)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"needs {package}, which is not installed" in said
    assert "pip install -c constraints.txt -e '.[live]'" in said


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5555", "http://127.0.0.1", "tcp://", "inproc://x"])
def test_an_address_that_zeromq_does_not_know_is_refused_in_the_site_file(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoints"):
        parse_site({"source": {"kind": "zeromq", "endpoints": [endpoint]}})
