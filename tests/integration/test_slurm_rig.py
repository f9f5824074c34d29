"""The rig itself, and what the site check learns from a Slurm that answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.batch.check import check_batch
from filmloop.adapters.slurm.dialect import SlurmDialect
from filmloop.config.schema import SlurmLauncher as Section
from filmloop.core.finding import Finding
from filmloop.core.retry import wait_until
from filmloop.testing import processes
from filmloop.testing.slurm import PREFIX, SlurmRig, kill_all

OWNER = """
import time
from filmloop.testing.slurm import slurm_rig
with slurm_rig() as rig:
    rig.run("sbatch", "--nodes=2", "--output=/dev/null", "--chdir=/", "--wrap=srun sleep 600")
    while "RUNNING" not in rig.run("squeue", "--noheader", "--format=%T"):
        time.sleep(0.1)
    print(rig.folder, flush=True)
    time.sleep(600)
"""


def asked(tmp_path: Path, **keys: Any) -> Finding:
    section = Section(python="/bin/true", **keys)  # importing torch five times is not what is tested
    checks = check_batch(SlurmDialect(section), section, runs=tmp_path / "runs", deadline_s=600.0)
    return next(check for check in checks if check.item == "job queue")


def test_slurm_judges_the_batch_script_of_a_site_without_a_submission(tmp_path: Path, slurm: SlurmRig) -> None:
    good = asked(tmp_path, nodes=2, gpus_per_node=4, constraint="gpu", account="any")
    assert (good.hint, "to start at" in good.detail) == ("", True), good.detail
    for bad in ({"partition": "nowhere"}, {"constraint": "v100"}, {"nodes": 3}, {"gpus_per_node": 5}):
        refused = asked(tmp_path, **bad)
        assert (refused.state, "sbatch" in refused.detail, "[launcher]" in refused.hint) == ("fail", True, True), bad
    assert slurm.run("squeue", "--noheader", "--states=all", "--format=%j").split().count("fl-check") == 0


@pytest.mark.slow
def test_the_next_rig_sweeps_away_what_one_left_whose_owner_was_killed(slurm: SlurmRig) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder != slurm.folder, "two rigs run side by side"
        owner.send_signal(signal.SIGKILL)
    assert (folder / "slurm.conf").exists()
    processes.sweep(PREFIX, kill_all)
    assert not folder.exists()
    wait_until(
        lambda: True if not list(processes.marked(f"SLURM_CONF={folder}/slurm.conf")) else None,
        deadline_s=30,
        what="the end of its jobs",
    )
    assert slurm.states() == dict.fromkeys(slurm.nodes, "idle"), "ours goes on"
    assert os.environ["SLURM_CONF"] == str(slurm.folder / "slurm.conf")
