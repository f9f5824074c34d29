"""The launcher for Globus Compute: the unmodified SDK and endpoint, a real broker, the hosted services emulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.adapters.globus.compute.launcher import GlobusLauncher
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite
from rigs.globus import Compute
from rigs.launching import launcher_of


class TestGlobusLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, compute: Compute) -> LauncherSite:
        def make() -> GlobusLauncher:
            return launcher_of(compute, tmp_path / "launches")

        return LauncherSite(runs=tmp_path / "runs", make=make)
