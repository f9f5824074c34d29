"""The local mover and launcher when something kills, fills or changes what is under their feet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.mover import LocalMover
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.core.errors import TransientError
from filmloop.core.fsio import sha256_file, try_lock
from filmloop.core.retry import wait_until
from filmloop.testing.contracts import launcher as launching
from filmloop.testing.contracts import mover as moving

FILES = 60
FILE_BYTES = 1_000_000
# The caller's disk takes 20 ms more a file than ours, 1.2 s in all: the kill falls into the middle on any machine.

MOVER_CALLER = """
import sys, time
from pathlib import Path
from filmloop.adapters.moving import deliver
from filmloop.adapters.local.mover import LocalMover
from filmloop.config.schema import LocalMover as Section
from filmloop.testing.contracts.mover import item
fsync_file = deliver.fsync_file
deliver.fsync_file = lambda path: (time.sleep(0.02), fsync_file(path))
root = Path(sys.argv[1])
files = {f"f{n}": (root / "edge" / f"f{n}").read_bytes() for n in range(int(sys.argv[2]))}
mover = LocalMover(
    edge_root=root / "edge", cluster_root=root / "cluster", journal=root / "moves", section=Section()
)
mover.submit("to_cluster", [item(name, data) for name, data in files.items()], key="k1")
time.sleep(600)
"""

LAUNCHER_CALLER = """
import sys
from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.config.schema import LocalLauncher as Section
from filmloop.core.documents import TrainJob
job = TrainJob.model_validate_json(sys.argv[1])
launcher = LocalLauncher(section=Section(), command=(sys.executable, "-m", "filmloop.testing.standin_trainer"))
print("ready", flush=True)
launcher.submit(job)
"""


def local_mover(root: Path, *, cluster: Path | None = None, journal: Path | None = None) -> LocalMover:
    for side in ("edge", "cluster"):
        (root / side).mkdir(exist_ok=True)
    return LocalMover(
        edge_root=root / "edge",
        cluster_root=cluster or root / "cluster",
        journal=journal or root / "moves",
        section=MoverSection(),
    )


def local_launcher(*command: str, grace_s: float = 0.5) -> LocalLauncher:
    standin = (sys.executable, "-m", "filmloop.testing.standin_trainer")
    return LocalLauncher(section=LauncherSection(), command=command or standin, grace_s=grace_s)


def launcher_site(root: Path, *command: str) -> launching.LauncherSite:
    return launching.LauncherSite(runs=root, make=lambda: local_launcher(*command))


def supervisor_pid(handle: str) -> int:
    log = Path(handle, "run.log")
    found = wait_until(
        lambda: re.search(r"supervisor (\d+)", log.read_text()) if log.exists() else None,
        deadline_s=30,
        what="the supervisor's first line",
    )
    return int(found[1])


@pytest.fixture
def tiny_disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("1m")


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(4096))


def test_a_copy_survives_the_kill_of_its_caller(tmp_path: Path) -> None:
    mover = local_mover(tmp_path)
    for n in range(FILES):
        (tmp_path / "edge" / f"f{n}").write_bytes(os.urandom(FILE_BYTES))
    caller = subprocess.Popen([sys.executable, "-c", MOVER_CALLER, str(tmp_path), str(FILES)])
    target = tmp_path / "cluster" / "there"
    wait_until(
        lambda: (target / "f3").exists() or None, deadline_s=60, what="the fourth file", first_s=0.001, cap_s=0.001
    )
    caller.send_signal(signal.SIGKILL)
    caller.wait()

    arrived = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert 4 <= len(arrived) < FILES, "the kill has to fall into the middle of the move"
    assert all(sha256_file(target / name) == sha256_file(tmp_path / "edge" / name) for name in arrived)

    status = moving.ended(mover, "k1")
    mover.close()
    assert (status.state, status.files_done) == ("succeeded", FILES)
    assert all(sha256_file(target / f"f{n}") == sha256_file(tmp_path / "edge" / f"f{n}") for n in range(FILES))
    assert arrived == {name: (target / name).stat().st_mtime_ns for name in arrived}, "what arrived is not copied again"
    assert list((tmp_path / "cluster" / ".incoming").iterdir()) == []


# The interpreter of the supervisor starts in about 0.07 s: before, during and after.
@pytest.mark.parametrize("delay_s", [0.0, 0.004, 0.03, 0.06, 0.12])
def test_a_submission_survives_the_kill_of_its_caller_and_starts_one_run(tmp_path: Path, delay_s: float) -> None:
    site = launcher_site(tmp_path)
    job = site.job("wait")
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER_CALLER, job.model_dump_json()], stdout=subprocess.PIPE
    ) as caller:
        assert caller.stdout is not None
        caller.stdout.readline()
        time.sleep(delay_s)
        caller.send_signal(signal.SIGKILL)
    launcher = site.make()
    handle = launcher.submit(job)
    launching.started(job)
    assert launcher.submit(job) == handle
    Path(job.output_dir, "go").touch()
    assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 1


def test_killing_the_supervisor_leaves_no_process_and_the_job_starts_again(tmp_path: Path) -> None:
    site = launcher_site(tmp_path)
    job, launcher = site.job("hang"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job, processes=2)
    os.kill(supervisor_pid(handle), signal.SIGKILL)
    status = launching.ended(launcher, handle)
    assert status.state == "lost"
    assert launching.alive(pids) == []
    assert launcher.submit(job) == handle
    launching.started(job, processes=4)
    launcher.cancel(handle)
    assert launching.alive(launching.said_pids(job)) == []


def test_a_supervisor_that_is_told_to_stop_leaves_a_job_that_goes_on_later(tmp_path: Path) -> None:
    site = launcher_site(tmp_path)
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job)
    os.kill(supervisor_pid(handle), signal.SIGTERM)
    assert launching.ended(launcher, handle).state == "lost"
    assert launching.alive(pids) == []
    Path(job.output_dir, "go").touch()
    launcher.submit(job)
    assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 2


def test_no_rank_of_torchrun_survives_its_supervisor(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    site = launcher_site(tmp_path, *torchrun, "-m", "filmloop.testing.standin_trainer")
    job, launcher = site.job("hang"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job, processes=4)
    assert launching.alive(pids) == pids
    os.kill(supervisor_pid(handle), signal.SIGKILL)
    assert launching.ended(launcher, handle).state == "lost"
    assert launching.alive(pids) == []


def test_cancel_reaches_the_ranks_of_torchrun_in_their_own_sessions(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    site = launcher_site(tmp_path, *torchrun, "-m", "filmloop.testing.standin_trainer")
    job, launcher = site.job("hang"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job, processes=4)
    launcher.cancel(handle)
    assert launcher.poll(handle).state == "failed"
    assert launching.alive(pids) == []


def test_cancelling_a_lost_job_keeps_it_from_coming_back(tmp_path: Path) -> None:
    site = launcher_site(tmp_path)
    job, launcher = site.job("hang"), site.make()
    handle = launcher.submit(job)
    pids = launching.started(job, processes=2)
    os.kill(supervisor_pid(handle), signal.SIGKILL)
    launcher.cancel(handle)
    assert launching.alive(pids) == []
    launcher.submit(job)
    status = launcher.poll(handle)
    assert (status.state, "cancelled" in status.detail) == ("failed", True)
    assert launching.starts(job) == 1


def test_a_full_target_fails_for_now_and_goes_on_when_there_is_room(tmp_path: Path, tiny_disk: Path) -> None:
    mover = local_mover(tmp_path, cluster=tiny_disk)
    site = moving.MoverSite(edge=tmp_path / "edge", cluster=tiny_disk, make=lambda: mover)
    items = site.put("to_cluster", {"small": b"x" * 1000, "big": b"x" * 2_000_000})
    status = moving.ended(mover, mover.submit("to_cluster", items, key="k1"))
    assert (status.state, status.retryable, status.files_done) == ("failed", True, 1)
    assert "No space left" in status.detail
    assert moving.files_below(tiny_disk) == {"there/small"}
    assert list((tiny_disk / ".incoming").iterdir()) == [], "the half copy gives its space back"
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    assert moving.ended(mover, mover.submit("to_cluster", items, key="k1")).state == "succeeded"
    mover.close()


def test_a_full_journal_disk_does_not_hide_the_outcome(tmp_path: Path, tiny_disk: Path) -> None:
    mover = local_mover(tmp_path, journal=tiny_disk / "moves")
    site = moving.MoverSite(edge=tmp_path / "edge", cluster=tmp_path / "cluster", make=lambda: mover)
    (tiny_disk / "moves/k1").mkdir(parents=True)
    with try_lock(tiny_disk / "moves/k1/lock"):
        handle = mover.submit("to_cluster", site.put("to_cluster", {"f": b"bytes"}), key="k1")
        fill(tiny_disk)
    assert [moving.ended(mover, handle).state for _ in range(2)] == ["succeeded", "succeeded"]
    assert not (tiny_disk / "moves/k1/outcome.json").exists()
    mover.close()
    (tiny_disk / "filler").unlink()
    assert moving.ended(mover, handle).state == "succeeded"
    assert (tiny_disk / "moves/k1/outcome.json").exists()
    mover.close()


def test_a_job_for_a_full_disk_is_refused_and_started_when_there_is_room(tmp_path: Path, tiny_disk: Path) -> None:
    site = launcher_site(tiny_disk)
    job, launcher = site.job("succeed"), site.make()
    Path(job.output_dir).mkdir()
    fill(tiny_disk)
    with pytest.raises(TransientError, match="No space left"):
        launcher.submit(job)
    (tiny_disk / "filler").unlink()
    assert launching.ended(launcher, launcher.submit(job)).state == "succeeded"
    assert launching.starts(job) == 1
