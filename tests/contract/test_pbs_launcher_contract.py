"""The launcher for PBS against a stand-in for PBS: there is none in Debian. See `filmloop.testing.pbs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from filmloop.adapters.pbs.launcher import PbsLauncher
from filmloop.config.schema import PbsLauncher as LauncherSection
from filmloop.testing import pbs
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite


class TestPbsLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LauncherSite:
        commands = pbs.install(tmp_path / "pbs")
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")

        def make() -> PbsLauncher:
            command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
            return PbsLauncher(section=LauncherSection(poll_s=0.1, settle_s=0.3), command=command, grace_s=0.5)

        return LauncherSite(runs=tmp_path / "runs", make=make)
