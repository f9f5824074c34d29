"""The launcher for PBS against a stand-in for PBS: there is none in Debian. See `filmloop.testing.pbs`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from filmloop.adapters.batch.attempt import Attempt
from filmloop.adapters.pbs.launcher import PbsLauncher
from filmloop.config.schema import PbsLauncher as LauncherSection
from filmloop.core.retry import wait_until
from filmloop.testing import pbs
from filmloop.testing.contracts.launcher import LauncherContract, LauncherSite, ended, started


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PbsLauncher]:
    """A launcher beside the stand-in; its arguments are directives of the site."""
    commands = pbs.install(tmp_path / "pbs")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")

    def build(*options: str) -> PbsLauncher:
        section = LauncherSection(poll_s=0.1, settle_s=0.3, options=options)
        command = (sys.executable, "-m", "filmloop.testing.standin_trainer")
        return PbsLauncher(section=section, command=command, grace_s=0.5)

    return build


class TestPbsLauncher(LauncherContract):
    @pytest.fixture
    def site(self, tmp_path: Path, make: Callable[..., PbsLauncher]) -> LauncherSite:
        return LauncherSite(runs=tmp_path / "runs", make=make)


@pytest.fixture
def site(tmp_path: Path, make: Callable[..., PbsLauncher]) -> LauncherSite:
    return LauncherSite(runs=tmp_path / "runs", make=make)


def batch_id_of(handle: str) -> str:
    attempt = Attempt.read(Path(handle))
    assert attempt is not None
    return attempt.batch_id


def test_a_running_job_that_an_operator_deletes_is_not_started_again(site: LauncherSite) -> None:
    """Its supervisor saves upon the SIGTERM and ends with an exit code of its own: that it was deleted is a substate."""
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    started(job)
    subprocess.run(["qdel", batch_id_of(handle)], check=True)
    status = ended(launcher, handle)
    assert (status.state, "by an operator" in status.detail) == ("failed", True), status.detail


def test_a_job_whose_document_is_no_json_is_seen_to_its_end(
    site: LauncherSite, make: Callable[..., PbsLauncher]
) -> None:
    launcher = make("-v run=005")
    status = ended(launcher, launcher.submit(site.job("fail")))
    assert (status.state, status.exit_code) == ("failed", 6)


def test_a_job_whose_id_was_forgotten_is_found_beside_a_document_that_is_no_json(
    site: LauncherSite, make: Callable[..., PbsLauncher]
) -> None:
    """qstat writes the environments of all users' jobs as they stand; at a facility one of them is broken on most days."""
    broken, ours = make("-v run=005"), make()
    handles = broken.submit(site.job("wait", job_id="theirs")), ours.submit(site.job("wait", job_id="ours"))
    try:
        attempt = Attempt.read(Path(handles[1]))
        assert attempt is not None
        assert ours.dialect.find(attempt) == attempt.batch_id
    finally:
        for handle in handles:
            ours.cancel(handle)


def test_a_pbs_that_keeps_no_history_shows_its_jobs_all_the_same(tmp_path: Path, site: LauncherSite) -> None:
    """The default of a server. `-x` then gets no job at all, and exit code 0."""
    (tmp_path / "pbs" / pbs.NO_HISTORY).touch()
    job, launcher = site.job("wait"), site.make()
    handle = launcher.submit(job)
    started(job)
    attempt = Attempt.read(Path(handle))
    assert attempt is not None
    assert launcher.dialect.look(attempt.batch_id).phase == "running"
    assert launcher.dialect.find(attempt) == attempt.batch_id
    Path(handle, "go").touch()
    assert ended(launcher, handle).state == "succeeded"
    wait_until(
        lambda: True if launcher.dialect.look(attempt.batch_id).phase == "gone" else None, deadline_s=30, what="the end"
    )
