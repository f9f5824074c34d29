"""The edge as it is run at an instrument, one service and three stage processes: killed, stopped, held up."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from filmloop.bootstrap import edge_service, open_ledger, open_site
from filmloop.config.paths import Home
from filmloop.core.errors import ConfigError
from filmloop.edge.status import is_alive, read_status
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.staging.verify import verify_shard

SETS = (
    "source.pool_frames=1024", "source.rate_hz=8000.0", "edge.status_every_s=0.02", "staging.frames_per_shard=4096",
    "staging.frames_per_chunk=512", "edge.ring_mb=128.0",
)  # fmt: skip


@pytest.fixture
def edge(filmloop, tmp_path):
    """Starts the real command, in a process group of its own, and gives what it needs to be looked at."""

    class Edge:
        home = Home(tmp_path / "home")
        log = tmp_path / "edge.log"

        @contextmanager
        def running(self, *words, sets=SETS):
            command = filmloop(self.home.root, *sets)
            with self.log.open("ab") as out:
                process = subprocess.Popen(
                    command.argv("edge", "run", "--no-registry", *words), env=command.env(), stdin=subprocess.DEVNULL,
                    stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        def shows(self, process, wanted, deadline_s=60.0):
            end_s = time.monotonic() + deadline_s
            while (status := read_status(self.home)) is None or status.pid != process.pid or not wanted(status):
                assert time.monotonic() < end_s, (status, self.log.read_text())
                assert process.poll() is None, self.log.read_text()
                time.sleep(0.01)
            return status

    return Edge()


def staged_ids(home):
    """Pulse ids in sealed shards, every hash checked and every manifest's books."""
    ids = []
    for shard in sealed_shards(home.stage, "simulator"):
        verify_shard(shard.manifest_path)
        ids.append(ShardReader(shard.manifest_path).pulse_id_N)
        balanced(shard.manifest.accounting)
    return np.concatenate(ids)


def balanced(books):
    assert books.frames_in == books.frames_inferred + sum(books.frames_dropped.values())
    assert books.frames_in == books.frames_staged + sum(books.frames_unstaged.values())
    return books


def gone(pids, deadline_s=2.0):
    end_s = time.monotonic() + deadline_s
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and b"edge_stage" in cmdline(pid)]:
        if time.monotonic() > end_s:
            return left
        time.sleep(0.01)
    return []


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_a_killed_service_takes_its_stages_with_it_and_the_next_one_continues_with_exact_books(edge):
    stages = []
    for _ in range(2):
        with edge.running() as process:
            status = edge.shows(process, lambda s: s.state == "running")
            status = edge.shows(process, lambda s, before=status: s.frames_staged > before.frames_staged + 4096)
            stages += status.stages.values()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert gone(status.stages.values()) == [], "a stage outlives its service"
            assert not is_alive(edge.home)
    with edge.running() as process:
        edge.shows(process, lambda s: s.state == "running" and s.frames_in > status.frames_in + 10_000)
        process.terminate()
        assert process.wait(10) == 0
    books = balanced(read_status(edge.home))
    ids = staged_ids(edge.home)
    assert len(set(stages)) == 6
    # The simulator goes on behind the newest sealed frame: nothing is missing and nothing is there twice.
    assert np.array_equal(np.sort(ids), np.arange(len(ids), dtype=np.uint64))
    assert books.frames_missing == 0
    assert books.frames_staged == books.frames_in == len(ids)


def test_sigterm_to_the_whole_group_stops_in_order_within_five_seconds(edge):
    with edge.running() as process:
        status = edge.shows(process, lambda s: s.state == "running" and s.frames_staged > 0)
        begun_s = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - begun_s < 5
        assert gone(status.stages.values(), 0.1) == []
    books = balanced(read_status(edge.home))
    assert books.state == "stopped"
    assert set(books.restarts.values()) == {0}
    assert set(books.frames_unstaged) <= {"stopped"}
    assert len(staged_ids(edge.home)) == books.frames_staged
    assert "Traceback" not in edge.log.read_text()


def test_ctrl_c_while_the_stages_still_start_stops_in_order_too(edge):
    with edge.running() as process:
        edge.shows(process, lambda s: len(s.stages) == 3)
        begun_s = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - begun_s < 5
    assert read_status(edge.home).state == "stopped"
    assert set(read_status(edge.home).restarts.values()) == {0}
    assert "Traceback" not in edge.log.read_text()


@pytest.mark.slow
def test_a_stage_that_hangs_is_started_anew_within_seconds_once_the_ring_is_full(edge):
    role = "staging"
    # 16 MB are 7680 frames: full after a second.
    with edge.running(sets=(*SETS, "edge.ring_mb=16.0", "edge.stall_after_s=60.0")) as process:
        status = edge.shows(process, lambda s: s.state == "running" and s.frames_staged > 0)
        os.kill(status.stages[role], signal.SIGSTOP)
        stopped_s = time.monotonic()
        again = edge.shows(process, lambda s: s.restarts[role] == 1 and s.state == "running", 20)
        edge.shows(process, lambda s: s.frames_staged > again.frames_staged)
        assert time.monotonic() - stopped_s < 10
        assert gone([status.stages[role]]) == []
        process.terminate()
        assert process.wait(10) == 0
    books = balanced(read_status(edge.home))
    ids = staged_ids(edge.home)
    assert len(np.unique(ids)) == len(ids) == books.frames_staged
    assert {name for name, count in books.restarts.items() if count} == {role}


SITE = """
schema_version = 1
site = "elsewhere"
home = "home"
[frame]
channels = 4
energy_bins = 16
[source]
kind = "replay"
path = "{path}"
"""


def test_a_source_with_frames_of_another_shape_ends_the_service_with_that_error_and_its_hint(tmp_path):
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["Ximg"] = np.zeros((10, 4, 8), np.float32)
    (tmp_path / "site.toml").write_text(SITE.format(path=tmp_path / "run.h5"))
    site = open_site(tmp_path / "site.toml")
    with open_ledger(site) as ledger, pytest.raises(ConfigError, match="8") as error:
        edge_service(site, ledger, with_registry=False).run(threading.Event())
    assert "[frame]" in error.value.hint
    assert read_status(site.home).state == "stopped"
    assert not is_alive(site.home)
