"""The launcher for Globus Compute: the unmodified SDK and endpoint, a real broker, the hosted services emulated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from filmloop.adapters.globus.launcher import GlobusLauncher
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite
from rigs.launching import TrainingSite


class TestGlobusLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, training: TrainingSite) -> LauncherSite:
        def make() -> GlobusLauncher:
            command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
            return training.launcher(tmp_path / "launches", command=command, grace_s=0.5)

        return LauncherSite(runs=tmp_path / "runs", make=make)
