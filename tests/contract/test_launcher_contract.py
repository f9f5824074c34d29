from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite, ended

STANDIN = "filmloop.testing.standin_trainer"


class TestColdLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> LauncherSite:
        def make() -> LocalLauncher:
            command = (sys.executable, "-m", STANDIN)
            return LocalLauncher(section=LauncherSection(), command=command, grace_s=0.5)

        return LauncherSite(runs=tmp_path / "runs", make=make)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmWorker]:
    warm = WarmWorker(tmp_path_factory.mktemp("cluster") / "worker", idle_s=300.0, patience_s=120.0)
    yield warm
    warm.stop()


class TestWarmLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, worker: WarmWorker) -> LauncherSite:
        def make() -> LocalLauncher:
            return LocalLauncher(section=LauncherSection(processes=1), module=STANDIN, grace_s=0.5, worker=worker)

        return LauncherSite(runs=tmp_path / "runs", make=make)

    def test_it_is_warm(self, site: LauncherSite, worker: WarmWorker) -> None:
        launcher = site.make()
        before = worker.status().get("jobs", 0)
        status = ended(launcher, launcher.submit(site.job("succeed")))
        assert worker.status()["jobs"] == before + 1
        assert "cold start" not in status.log_tail
