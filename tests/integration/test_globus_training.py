"""The real trainer at an endpoint of Globus Compute: on one node, and on the two nodes of a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.bundle import verify_bundle
from filmloop.core.documents import FileDigest
from filmloop.testing.contracts.launcher import until
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from rigs.globus import Compute
from rigs.launching import launcher_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_two_ranks_train_on_one_node(compute: Compute, tmp_path: Path) -> None:
    job = small_job(tmp_path / "run", staged_frames(tmp_path / "stage", simulated_counts(600)), deadline_s=300.0)
    launcher = launcher_of(compute, tmp_path / "launches", command=(), processes_per_node=2, grace_s=20.0)
    status = until(launcher, launcher.submit(job), "succeeded", "failed", "lost", deadline_s=200)
    assert status.state == "succeeded", f"{status.detail}\n{status.log_tail}"
    bundle = tmp_path / "run/bundle"
    assert verify_bundle(bundle).world_size == 2
    assert FileDigest.of(bundle / "result.json", bundle) in status.bundle_files


def test_a_trainer_that_finds_its_data_missing_says_so_in_its_own_class(compute: Compute, tmp_path: Path) -> None:
    shard = staged_frames(tmp_path / "stage", simulated_counts(600))
    missing = shard.model_copy(update={"manifest_path": str(tmp_path / "nowhere.json")})
    job = small_job(tmp_path / "run", missing, deadline_s=300.0)
    launcher = launcher_of(compute, tmp_path / "launches", command=(), processes_per_node=2)
    status = until(launcher, launcher.submit(job), "succeeded", "failed", "lost", deadline_s=200)
    assert (status.state, status.error, "nowhere.json" in status.detail) == ("failed", "DataError", True)


def test_one_rank_on_each_of_two_nodes_of_slurm_trains_together(slurm_compute: Compute, tmp_path: Path) -> None:
    job = small_job(tmp_path / "run", staged_frames(tmp_path / "stage", simulated_counts(600)), deadline_s=300.0)
    launcher = launcher_of(
        slurm_compute, tmp_path / "launches", engine="slurm-mpi", command=(), nodes=2, queue_wait_s=120.0, grace_s=20.0
    )
    status = until(launcher, launcher.submit(job), "succeeded", "failed", "lost", deadline_s=300)
    assert status.state == "succeeded", f"{status.detail}\n{status.log_tail}"
    assert verify_bundle(tmp_path / "run/bundle").world_size == 2
