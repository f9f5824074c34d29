"""The real trainer on the two nodes of a real Slurm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.slurm.launcher import SlurmLauncher
from filmloop.bundle import verify_bundle
from filmloop.config.schema import LocalLauncher as LocalSection
from filmloop.config.schema import SlurmLauncher as SlurmSection
from filmloop.core.documents import TrainJob
from filmloop.ports.launcher import Launcher
from filmloop.testing.contracts.launcher import until
from filmloop.testing.slurm import ON_ONE_MACHINE, SlurmRig
from filmloop.testing.training import simulated_counts, small_job, staged_frames

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def trained(launcher: Launcher, job: TrainJob, keep: Path) -> tuple[bytes, npt.NDArray[np.float32], int]:
    """job.json, weights and number of ranks of a job that has run; its run folder is moved to `keep`."""
    status = until(launcher, launcher.submit(job), "succeeded", "failed", "lost", deadline_s=300)
    assert status.state == "succeeded", f"{status.detail}\n{status.log_tail}"
    Path(job.output_dir).rename(keep)
    arrays = load_file(keep / "bundle/weights.safetensors")
    weights = np.concatenate([arrays[name].ravel() for name in sorted(arrays)])
    return (keep / "job.json").read_bytes(), weights, verify_bundle(keep / "bundle").world_size


def test_the_very_same_job_gives_the_same_weights_as_a_subprocess_and_on_two_nodes_of_slurm(
    tmp_path: Path, slurm: SlurmRig
) -> None:
    # Only the order of summation may differ: 1e-8 of the weights after 40 steps, see test_one_rank_and_two_agree.
    job = small_job(tmp_path / "run", staged_frames(tmp_path / "stage", simulated_counts(600)), deadline_s=600.0)
    section = SlurmSection(nodes=2, env=ON_ONE_MACHINE, poll_s=0.2)
    local = trained(LocalLauncher(section=LocalSection(processes=2)), job, tmp_path / "local")
    cluster = trained(SlurmLauncher(section=section), job, tmp_path / "cluster")
    assert local[0] == cluster[0]
    assert (local[2], cluster[2]) == (2, 2)
    assert np.linalg.norm(local[1] - cluster[1]) < 1e-5 * np.linalg.norm(local[1])
    assert "--nodes=2" in (tmp_path / "cluster/batch.sh").read_text()
