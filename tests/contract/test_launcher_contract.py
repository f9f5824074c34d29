from __future__ import annotations

import sys
from pathlib import Path

import pytest

from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite


class TestLocalLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> LauncherSite:
        def make() -> LocalLauncher:
            command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
            return LocalLauncher(section=LauncherSection(), command=command, grace_s=0.5)

        return LauncherSite(runs=tmp_path / "runs", make=make)
