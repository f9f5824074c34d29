from __future__ import annotations

import sys
from pathlib import Path

import pytest

from filmloop.adapters.slurm.launcher import SlurmLauncher
from filmloop.config.schema import SlurmLauncher as LauncherSection
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite
from filmloop.testing.slurm import SlurmRig


class TestSlurmLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, slurm: SlurmRig) -> LauncherSite:
        def make() -> SlurmLauncher:
            command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
            return SlurmLauncher(section=LauncherSection(poll_s=0.1, settle_s=0.3), command=command, grace_s=0.5)

        return LauncherSite(runs=tmp_path / "runs", make=make)
