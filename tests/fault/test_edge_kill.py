"""The edge is ended by force, its disk fills up: nothing sealed is harmed and no frame is lost or staged twice."""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from filmloop.config.paths import Home
from filmloop.core.errors import AuthError, ConfigError, DataError, TransientError
from filmloop.edge.service import EdgeService
from filmloop.edge.spawn import EdgeProcess
from filmloop.edge.status import is_alive, read_status
from filmloop.ports.registry import CHAMPION
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.verify import verify_shard
from filmloop.testing import edge_child
from filmloop.testing.edge import FRAME_SHAPE, STREAM, ScriptedSource, small_site, staged
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle

# Importing torch takes seconds: each life forks off a server that has done so.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["filmloop.testing.edge_child"])


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def shows(home, wanted, deadline_s=30.0):
    end_s = time.monotonic() + deadline_s
    while (status := read_status(home)) is None or not wanted(status):
        assert time.monotonic() < end_s, status
        time.sleep(0.005)
    return status


def give_it_a_model(home, tmp_path):
    """A version that the lives to come start with, as if they had seen a registry once."""
    registry = MemoryRegistry(tmp_path / "registry")
    bundle = make_model_bundle(tmp_path / "bundle", frame_shape=FRAME_SHAPE)
    registry.set_alias(CHAMPION, registry.register(bundle, key="k", description="", tags={}, metrics={}).version)
    stop = threading.Event()
    service = EdgeService(
        config=small_site(),
        home=home,
        source=ScriptedSource([], at_end=lambda: True),
        registry=lambda: registry,
    )
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    shows(home, lambda status: status.version == "1")
    stop.set()
    thread.join()


@pytest.mark.slow
def test_eight_kills_at_random_moments_lose_no_frame_and_stage_none_twice(home, tmp_path):
    give_it_a_model(home, tmp_path)
    frames, chance, verified = 5_000, random.Random(20240901), set()
    for _ in range(8):
        life = _processes.Process(target=edge_child.run, args=(home.root, frames))
        life.start()
        # By progress, not by time: a loaded machine may need a second for what an idle one does in 20 ms.
        more = chance.randint(0, 4)
        before = len(verified)
        shows(home, lambda status, pid=life.pid: status.pid == pid and status.state == "running")
        while len(sealed_shards(home.stage, STREAM)) < before + more:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.03))
        life.kill()
        life.join()
        assert life.exitcode == -signal.SIGKILL
        assert not is_alive(home)
        shards = sealed_shards(home.stage, STREAM)
        for shard in shards:
            if shard.shard_id not in verified:
                verify_shard(shard.manifest_path)
                verified.add(shard.shard_id)
    assert 8 <= len(verified) < 2 * frames // 256, "the kills fell between the begin and the end of the data"
    last = _processes.Process(target=edge_child.run, args=(home.root, frames))
    last.start()
    last.join(60)
    assert last.exitcode == 0

    shards, columns = staged(home)
    delivered = [(run, pulse_id) for run, part in edge_child.script(frames) for pulse_id in part]
    assert list(zip(columns["run"].tolist(), columns["pulse_id"].tolist(), strict=True)) == delivered
    assert (columns["version"] == 1).all()
    assert np.isfinite(columns["phase"]).any()
    accounting = shards[-1].manifest.accounting
    assert accounting.frames_in == accounting.frames_inferred == accounting.frames_staged == len(delivered)
    assert not accounting.frames_dropped
    assert not accounting.frames_unstaged
    # Of each 1000 ids the last is missing; after the last frame of a run nobody can know.
    assert accounting.frames_missing == 2 * (frames // edge_child.GAP_EVERY - 1)
    for shard in shards:
        upto = shard.manifest.accounting
        assert upto.frames_in == delivered.index((shard.manifest.run_number, shard.manifest.last_pulse_id)) + 1


def test_a_disk_that_fills_up_and_is_freed_again_stops_nothing(home):
    """The kernel refuses files above 16 KiB from the outside: the same path as a full disk, by another error number.

    A shard of 4096 frames is larger, a status is not.
    """
    life = _processes.Process(target=edge_child.run, args=(home.root, 1_000_000), kwargs={"frames_per_shard": 4096})
    life.start()
    shows(home, lambda status: status.state == "running" and status.frames_staged > 0)
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (16384, unlimited))
    full = shows(home, lambda status: status.frames_unstaged.get("disk_full", 0) > 1000)
    assert full.last_problem
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    again = shows(home, lambda status: status.frames_staged > full.frames_staged + 1000)
    assert again.frames_in > full.frames_in
    begun_s = time.monotonic()
    life.terminate()
    life.join(10)
    assert time.monotonic() - begun_s < 5
    assert life.exitcode == 0
    stopped = read_status(home)
    assert stopped.state == "stopped"
    assert stopped.frames_in == stopped.frames_staged + sum(stopped.frames_unstaged.values())
    shards, columns = staged(home)
    assert len(np.unique(columns["pulse_id"])) == len(columns["pulse_id"]) == stopped.frames_staged
    left_out = sum(left.frames for shard in shards for left in shard.manifest.dropped if left.reason == "disk_full")
    assert left_out == stopped.frames_unstaged["disk_full"]


def test_a_spawned_edge_runs_beside_its_caller_and_stops_cleanly(home, tmp_path):
    argv = [sys.executable, "-m", "filmloop.testing.edge_child", str(home.root), "1000000"]
    edge = EdgeProcess.start(argv, home, tmp_path / "log" / "edge.log")
    try:
        assert edge.is_running()
        assert is_alive(home)
        shows(home, lambda status: status.pid == edge.pid and status.frames_in > 0)
    finally:
        code = edge.stop()
    assert code == 0
    assert edge.stop() == 0
    assert not is_alive(home)
    assert "SIGTERM: sealing the open shard" in edge.log_tail()
    status = read_status(home)
    # A disk that is slow today may leave some of the queue, counted.
    assert set(status.frames_unstaged) <= {"stopped"}
    assert staged(home)[1]["pulse_id"].size == status.frames_staged
    assert status.frames_in == status.frames_staged + sum(status.frames_unstaged.values())


def dying(code, *lines, first=""):
    """A child that says some lines on stderr and ends with `code`."""
    return [sys.executable, "-c", f"import sys\n{first}\nsys.stderr.write({chr(10).join(lines)!r})\nsys.exit({code})"]


@pytest.mark.parametrize(
    ("code", "kind"), [(2, ConfigError), (4, AuthError), (5, DataError), (3, TransientError), (70, TransientError)]
)
def test_an_edge_that_cannot_start_fails_with_its_own_error_and_hint(home, tmp_path, code, kind):
    log = tmp_path / "edge.log"
    log.write_text("ConfigError an error of an earlier life\n  hint: an old hint\n")
    lines = (
        "2026-11-22T13:05:01.250Z INFO starting",
        "XError the file is wrong",
        "  path: x.h5",
        "  hint: mend it",
        "",
    )
    with pytest.raises(kind, match=f"exit code {code}: the file is wrong$") as error:
        EdgeProcess.start(dying(code, *lines), home, log)
    assert type(error.value) is kind
    assert error.value.hint.startswith("mend it ")
    assert "edge.log" in error.value.hint


def test_an_edge_that_dies_without_a_word_of_ours_leaves_its_own_log_alone(home, tmp_path):
    log = tmp_path / "edge.log"
    log.write_text("ConfigError an error of an earlier life\n  hint: an old hint\n")
    kill = "import os, signal; print('allocating', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(TransientError, match="exit code -9") as error:
        EdgeProcess.start(dying(0, first=kill), home, log)
    assert "allocating" in error.value.message
    assert "earlier life" not in error.value.message
    assert "old hint" not in error.value.hint


SAYS_STOPPED = (
    "import os, time; from pathlib import Path; from filmloop.config.paths import Home\n"
    "from filmloop.edge.status import EdgeStatus, write_status\n"
    "write_status(Home(Path({home!r})), EdgeStatus(pid=os.getpid(), state={state!r}, started_utc='', updated_utc='',"
    " site='', stream=''))\n"
    "time.sleep(0.5)\n"
)


def test_an_edge_that_said_stopped_is_up_only_if_it_ends_well(home, tmp_path):
    """A service that fails writes "stopped" half a second before its process ends with the error."""
    stopped = SAYS_STOPPED.format(home=str(home.root), state="stopped")
    with pytest.raises(DataError, match="no frames"):
        EdgeProcess.start(dying(5, "DataError no frames\n", first=stopped), home, tmp_path / "edge.log")
    through = EdgeProcess.start(dying(0, first=stopped), home, tmp_path / "edge.log")
    assert through.stop() == 0


def test_an_edge_that_ends_later_is_told_by_its_error(home, tmp_path):
    running = SAYS_STOPPED.format(home=str(home.root), state="running")
    argv = dying(5, "DataError frame 3 cannot be read\n", first=running)
    edge = EdgeProcess.start(argv, home, tmp_path / "edge.log")
    edge.raise_if_ended()
    assert edge.stop() in (-signal.SIGTERM, 5)
    again = EdgeProcess.start(argv, home, tmp_path / "edge.log")
    end_s = time.monotonic() + 10
    while again.is_running():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    with pytest.raises(DataError, match="frame 3 cannot be read"):
        again.raise_if_ended()
    assert again.stop() == 5


def test_an_edge_tied_to_its_parent_stops_cleanly_when_that_is_killed(home, tmp_path):
    child = [sys.executable, "-m", "filmloop.testing.edge_child", str(home.root), "1000000", "--tied"]
    code = (
        "import time; from pathlib import Path; from filmloop.config.paths import Home\n"
        "from filmloop.edge.spawn import EdgeProcess\n"
        f"edge = EdgeProcess.start({child!r}, Home(Path({str(home.root)!r})), Path({str(tmp_path / 'edge.log')!r}))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        running = shows(home, lambda status: status.state == "running" and status.frames_staged > 0, 60.0)
        assert is_alive(home)
    finally:
        parent.kill()
        parent.wait()
    stopped = shows(home, lambda status: status.state == "stopped", 10.0)
    assert stopped.pid == running.pid
    end_s = time.monotonic() + 5
    while is_alive(home):
        assert time.monotonic() < end_s, "the edge outlives its parent"
        time.sleep(0.02)
    assert set(stopped.frames_unstaged) <= {"stopped"}
    assert staged(home)[1]["pulse_id"].size == stopped.frames_staged
    assert stopped.frames_in == stopped.frames_staged + sum(stopped.frames_unstaged.values())
    assert "the process that started this edge is gone" in (tmp_path / "edge.log").read_text()


def test_an_edge_that_ignores_sigterm_is_killed(home, tmp_path):
    code = (
        "import signal, sys, time; from pathlib import Path; from filmloop.config.paths import Home\n"
        "from filmloop.edge.lock import only_edge; from filmloop.edge.status import EdgeStatus, write_status\n"
        "import os; signal.signal(signal.SIGTERM, signal.SIG_IGN); home = Home(Path(sys.argv[1]))\n"
        "with only_edge(home):\n"
        "    write_status(home, EdgeStatus(pid=os.getpid(), state='running', started_utc='', updated_utc='', site='',"
        " stream=''))\n"
        "    time.sleep(60)\n"
    )
    edge = EdgeProcess.start([sys.executable, "-c", code, str(home.root)], home, tmp_path / "edge.log")
    assert edge.stop(deadline_s=0.3) == -signal.SIGKILL
