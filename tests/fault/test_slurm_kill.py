"""What happens to a training on two nodes of a real Slurm when something under it is killed or taken away.

By default one of each of the kinds that differ most; `FILMLOOP_SLURM_KILLS=20` runs every kind 20 times and prints the count.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from filmloop.adapters.batch.attempt import Attempt
from filmloop.adapters.local.supervise import kill_marked
from filmloop.adapters.slurm.launcher import SlurmLauncher
from filmloop.bundle import verify_bundle
from filmloop.config.schema import SlurmLauncher as Section
from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.retry import wait_until
from filmloop.testing.contracts import launcher as launching
from filmloop.testing.slurm import ON_ONE_MACHINE, SlurmRig, node_processes
from filmloop.testing.training import simulated_counts, small_job, staged_frames

RUNS = int(os.environ.get("FILMLOOP_SLURM_KILLS", "0"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(max(900, 150 * RUNS))]
STEPS = 200
STARTS = 6
"""A job that was disturbed once needs two."""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardRef:
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(600))


def submitted(folder: Path, shard: ShardRef, **section: object) -> tuple[TrainJob, SlurmLauncher]:
    """A job that runs on two nodes and has a checkpoint."""
    hyper = {"max_steps": STEPS, "checkpoint_every_s": 0.2, "patience_evaluations": 1000, "max_epochs": 1000}
    job = small_job(folder, shard, hyper=hyper, deadline_s=800.0)
    launcher = SlurmLauncher(section=Section(nodes=2, env=ON_ONE_MACHINE, poll_s=0.2, settle_s=1.0, **section))  # type: ignore[arg-type]
    handle = launcher.submit(job)

    def has_checkpoint() -> bool | None:
        status = launcher.poll(handle)
        assert status.state in ("pending", "running"), f"{status.detail}\n{status.log_tail}"
        return True if any(folder.glob("checkpoints/*/SHA256SUMS")) and last_step(folder) >= 20 else None

    wait_until(has_checkpoint, deadline_s=300, what="a checkpoint", first_s=0.05, cap_s=0.1)
    return job, launcher


def last_step(folder: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def driven_to_its_end(job: TrainJob, launcher: SlurmLauncher) -> None:
    """Do as the cycle does: submit again what was lost. Success needs a whole bundle that went on from a checkpoint."""
    for _ in range(STARTS):
        handle = launcher.submit(job)
        status = launching.until(launcher, handle, "succeeded", "failed", "lost", deadline_s=300)
        bundle = Path(job.output_dir, "bundle")
        if status.state == "succeeded":
            break
        assert status.state == "lost", f"{status.detail}\n{status.log_tail}"
        assert not (bundle / "result.json").exists(), "a job that did not succeed shows no bundle"
    assert status.state == "succeeded", f"{status.detail}\n{status.log_tail}"
    result = verify_bundle(bundle)
    assert (result.steps, result.world_size) == (STEPS, 2)
    assert result.resumed_from_step >= 10


def processes(rig: SlurmRig, node: str, said: bytes) -> list[int]:
    """Ids of the processes of jobs on the node whose command line has these words."""
    found = []
    for pid in node_processes(rig.folder, node):
        with suppress(OSError):
            if said in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "):
                found.append(pid)
    return found


def kill_a_rank(rig: SlurmRig, _batch_id: str) -> None:
    agents = {*processes(rig, "n2", b"filmloop.training.torchrun"), *processes(rig, "n2", b"srun")}
    ranks = [pid for pid in processes(rig, "n2", b"filmloop.training.entry") if pid not in agents]
    os.kill(ranks[0], signal.SIGKILL)


def kill_torchrun(rig: SlurmRig, _batch_id: str) -> None:
    os.kill(processes(rig, "n2", b"filmloop.training.torchrun")[0], signal.SIGKILL)


def kill_the_supervisor(rig: SlurmRig, _batch_id: str) -> None:
    os.kill(processes(rig, "n1", b"filmloop.adapters.batch.supervise")[0], signal.SIGKILL)


def kill_a_node(rig: SlurmRig, _batch_id: str) -> None:
    rig.kill_node("n2")
    rig.start_node("n2")


def kill_the_first_node(rig: SlurmRig, _batch_id: str) -> None:
    rig.kill_node("n1")
    rig.start_node("n1")


def terminate_the_ranks(rig: SlurmRig, batch_id: str) -> None:
    rig.run("scancel", "--signal=TERM", batch_id)


def warn_of_the_time_limit(rig: SlurmRig, batch_id: str) -> None:
    """What `--signal=B:TERM@60` sends a minute before the limit."""
    rig.run("scancel", "--batch", "--signal=TERM", batch_id)


def requeue(rig: SlurmRig, batch_id: str) -> None:
    rig.run("scontrol", "requeue", batch_id)


def preempt(rig: SlurmRig, _batch_id: str) -> None:
    rig.run(
        "sbatch", "--partition=debug", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=exit 0",
        "--chdir=/",
    )  # fmt: skip


FAULTS: dict[Callable[[SlurmRig, str], None], dict[str, object]] = {
    kill_a_rank: {},
    kill_a_node: {},
    requeue: {},
    kill_torchrun: {},
    kill_the_supervisor: {},
    kill_the_first_node: {},
    terminate_the_ranks: {},
    warn_of_the_time_limit: {},
    preempt: {"partition": "preempt"},
}
BY_DEFAULT = 3


@pytest.mark.parametrize("fault", list(FAULTS) if RUNS else list(FAULTS)[:BY_DEFAULT], ids=lambda fault: fault.__name__)
def test_training_goes_on_from_its_checkpoint_after(
    tmp_path: Path, shard: ShardRef, slurm: SlurmRig, fault: Callable[[SlurmRig, str], None]
) -> None:
    for run in range(max(1, RUNS)):
        job, launcher = submitted(tmp_path / f"run{run}", shard, **FAULTS[fault])
        attempt = Attempt.read(Path(job.output_dir))
        assert attempt is not None
        fault(slurm, attempt.batch_id)
        driven_to_its_end(job, launcher)
        kill_marked(attempt.token)
        slurm.clear()
        print(f"{fault.__name__}: {run + 1} of {max(1, RUNS)}", flush=True)


def stand_in(**section: object) -> SlurmLauncher:
    command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
    return SlurmLauncher(section=Section(poll_s=0.1, settle_s=0.3, **section), command=command, grace_s=0.5)  # type: ignore[arg-type]


def test_a_job_is_told_to_save_before_its_time_limit_and_goes_on(tmp_path: Path, slurm: SlurmRig) -> None:
    site = launching.LauncherSite(runs=tmp_path, make=lambda: stand_in(time_limit_s=60.0, save_before_s=56.0))
    job, launcher = site.job("wait", deadline_s=600.0), site.make()
    handle = launcher.submit(job)
    launching.started(job)
    status = launching.ended(launcher, handle)
    assert (status.state, "told to stop" in status.detail) == ("lost", True)
    Path(job.output_dir, "go").touch()
    launcher.submit(job)
    assert launching.ended(launcher, handle).state == "succeeded"


def test_a_job_that_an_operator_cancels_has_failed_and_stays_so(tmp_path: Path, slurm: SlurmRig) -> None:
    site = launching.LauncherSite(runs=tmp_path, make=stand_in)
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    launching.started(job)
    attempt = Attempt.read(Path(job.output_dir))
    assert attempt is not None
    slurm.run("scancel", attempt.batch_id)
    for _ in range(2):
        status = launching.ended(launcher, handle)
        assert (status.state, "by an operator or by hand" in status.detail) == ("failed", True)
        launcher.submit(job)
    assert launching.starts(job) == 1


def test_a_submission_whose_answer_was_lost_is_found_again(tmp_path: Path, slurm: SlurmRig) -> None:
    """As after a kill of the caller between sbatch and the record of its answer."""
    site = launching.LauncherSite(runs=tmp_path, make=stand_in)
    job, launcher = site.job("wait"), site.make()
    slurm.drain()  # it must wait, or it would tell its id itself
    handle = launcher.submit(job)
    record = Path(handle, "batch.json")
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "batch_id": ""}))
    assert site.make().poll(handle).state == "pending"
    assert site.make().submit(job) == handle
    assert json.loads(record.read_text()) == before
    assert slurm.run("squeue", "--noheader", "--format=%i").split() == [before["batch_id"]]
    slurm.drain(False)
    Path(handle, "go").touch()
    assert launching.ended(launcher, handle).state == "succeeded"
    assert launching.starts(job) == 1


def test_a_job_that_waits_too_long_is_withdrawn(tmp_path: Path, slurm: SlurmRig) -> None:
    site = launching.LauncherSite(runs=tmp_path, make=lambda: stand_in(queue_wait_s=1.0, nodes=2))
    slurm.drain()
    launcher, job = site.make(), site.job("succeed")
    status = launching.ended(launcher, launcher.submit(job))
    assert (status.state, "waited 1 s in the queue" in status.detail) == ("failed", True)
    assert launching.starts(job) == 0
