"""The batch scripts of the site files, and what a bad site file gets to hear."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.batch.check import check_batch
from filmloop.adapters.batch.launcher import BatchLauncher
from filmloop.adapters.batch.script import render, time_limit_s
from filmloop.adapters.pbs.dialect import PbsDialect
from filmloop.adapters.slurm.dialect import SlurmDialect
from filmloop.bootstrap import Site, open_launcher
from filmloop.config.loader import load_site, parse_site
from filmloop.config.paths import Home
from filmloop.config.schema import PbsLauncher, SlurmLauncher
from filmloop.core.errors import ConfigError, TransientError

CHECKOUT = Path(__file__).parents[3]
SITES = {
    "perlmutter": (
        {"launcher.account": "m0000", "launcher.qos": "regular"},
        ["#SBATCH --account=m0000", "#SBATCH --qos=regular", "#SBATCH --constraint=gpu", "#SBATCH --nodes=1",
         "#SBATCH --gpus-per-node=4", "#SBATCH --requeue", "#SBATCH --signal=B:TERM@60",
         "#SBATCH --time=0:17:00", "#SBATCH --exclusive"],
    ),
    "polaris": (
        {"launcher.account": "proj", "launcher.queue": "debug"},
        ["#PBS -A proj", "#PBS -q debug", "#PBS -l select=1:system=polaris", "#PBS -l filesystems=home:eagle",
         "#PBS -l place=scatter", "#PBS -l walltime=00:17:00", "#PBS -r y"],
    ),
}  # fmt: skip


def launcher_of(name: str, **overrides: Any) -> BatchLauncher:
    config = load_site(CHECKOUT / f"site_configs/{name}.toml", overrides=overrides)
    launcher = open_launcher(
        Site(file=CHECKOUT / f"site_configs/{name}.toml", config=config, home=Home(CHECKOUT / ".none"))
    )
    assert isinstance(launcher, BatchLauncher)
    return launcher


@pytest.mark.parametrize("name", SITES)
def test_the_script_of_a_site_says_what_its_queue_wants_and_is_one_for_bash(tmp_path: Path, name: str) -> None:
    overrides, wanted = SITES[name]
    launcher = launcher_of(name, **overrides)
    script = render(
        launcher.dialect, launcher.section, folder=tmp_path, name="fl-1", token="t",
        limit_s=time_limit_s(launcher.section, 900.0),
    )  # fmt: skip
    assert [line for line in wanted if line not in script.splitlines()] == []
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SITES)
def test_the_site_check_names_the_keys_that_are_empty(tmp_path: Path, name: str) -> None:
    overrides, _ = SITES[name]
    empty = [key.removeprefix("launcher.") for key in overrides]
    launcher = launcher_of(name)
    first = next(check_batch(launcher.dialect, launcher.section, runs=tmp_path, deadline_s=900.0))
    assert first.detail == f"[launcher] {' and '.join(empty)} are empty"
    launcher = launcher_of(name, **overrides)
    assert next(check_batch(launcher.dialect, launcher.section, runs=tmp_path, deadline_s=900.0)).hint == ""


def test_the_site_check_says_how_to_mend_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    launcher = launcher_of("perlmutter", **{"launcher.python": "/nowhere/python"})
    found = {
        check.item: check
        for check in check_batch(launcher.dialect, launcher.section, runs=tmp_path / "runs", deadline_s=900.0)
    }
    assert found["job commands"].detail == "not on the PATH: sbatch, srun, squeue, scancel"
    assert "/nowhere/python is not there" in found["job python"].detail
    assert "virtual environment" in found["job python"].hint


@pytest.mark.parametrize("value", ["two words", "a'b", 'a"b', "a$b", "a;b", "a\nb", "a`b"])
def test_a_key_that_could_break_out_of_its_directive_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.account"):
        parse_site({"launcher": {"kind": "slurm", "account": value}}, where="test")


def test_values_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    section = SlurmLauncher(env={"A": "it's $HOME"}, setup=("B=2",), python="/bin/true")
    script = render(SlurmDialect(section), section, folder=tmp_path, name="fl-1", token="t", limit_s=60)
    shown = script.replace("exec /bin/true", "echo").replace(f"exec >>{tmp_path}/run.log 2>&1", "")
    done = subprocess.run(["bash"], input=shown + 'echo "$A $B"\n', text=True, capture_output=True)
    assert "it's $HOME 2" in done.stdout


def test_a_run_folder_that_a_script_cannot_name_is_refused(tmp_path: Path) -> None:
    section = SlurmLauncher()
    with pytest.raises(ConfigError, match="characters"):
        render(SlurmDialect(section), section, folder=tmp_path / "a b", name="n", token="t", limit_s=60)


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_time_limit_without_time_to_train_is_refused(kind: str) -> None:
    """Every job would be told to end in its first second, four times a cycle."""
    with pytest.raises(ConfigError, match="is over before training begins"):
        parse_site({"launcher": {"kind": kind, "time_limit_s": 60.0}})
    parse_site({"launcher": {"kind": kind, "time_limit_s": 61.0}})


@pytest.mark.parametrize(
    ("kind", "said", "passes"),
    [
        ("pbs", "qsub: Maximum number of jobs for user ann already in queue debug", True),
        ("pbs", "qsub: would exceed queue debug's per-user limit", True),
        ("pbs", "qsub: Request not allowed: Server shutting down", True),
        ("pbs", "qsub: Queue is not enabled", True),
        ("pbs", "qsub: Batch protocol error", True),
        ("pbs", "qsub: Unknown queue", False),
        ("pbs", "qsub: Job violates queue and/or server resource limits", False),
        ("slurm", "sbatch: error: Unable to contact slurm controller (connect failure)", True),
        ("slurm", "sbatch: error: Required partition not available (inactive or drain)", True),
        ("slurm", "sbatch: error: invalid partition specified: gpu", False),
        ("slurm", "sbatch: error: Invalid account or account/partition combination specified", False),
    ],
)
def test_a_refusal_that_passes_by_itself_is_no_fault_of_the_site_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str, passes: bool
) -> None:
    """A queue that takes one job a user, or is closed for a day, must not end a cycle as failed."""
    command = tmp_path / ("qsub" if kind == "pbs" else "sbatch")
    command.write_text(f"#!/bin/sh\necho {shlex.quote(said)} >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    dialect = PbsDialect(PbsLauncher()) if kind == "pbs" else SlurmDialect(SlurmLauncher())
    with pytest.raises(TransientError if passes else ConfigError, match=re.escape(said)):
        dialect.submit(tmp_path / "batch.sh", lock=0)
