"""Fixtures that most suites share: a state folder of its own, the sample data, the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filmloop.config.paths import Home
from filmloop.testing.slurm import PACKAGES, SlurmRig, missing_programs, slurm_rig

pytest_plugins = ["rigs.globus", "rigs.globus_auth", "rigs.globus_way"]
if "/" not in sys.argv[0]:  # in a worker of pytest-xdist it is "-c", and the endpoint's command line wants a path
    sys.argv[0] = f"./{sys.argv[0]}"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
CHECKOUT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FILMLOOP_DATA", CHECKOUT / "../shared/data")).resolve()


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own state or site."""
    for name in ("FILMLOOP_HOME", "FILMLOOP_SITE", "FILMLOOP_LOG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty state folder."""
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Path]:
    """Path of a sample file; the test is skipped, saying so, where the samples are not."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.is_file():
            pytest.skip(f"FILMLOOP_DATA not found: {path} is absent; set FILMLOOP_DATA to the folder with the samples")
        return path

    return find


@pytest.fixture(scope="session")
def _slurm_rig() -> Iterator[SlurmRig]:
    if missing := missing_programs():
        pytest.skip(f"SLURM NOT TESTED: no {missing[0]} here; .ci/system installs {', '.join(PACKAGES)} (Debian, root)")
    with slurm_rig() as rig:
        yield rig


@pytest.fixture
def slurm(_slurm_rig: SlurmRig, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmRig]:
    """A real Slurm with two idle nodes, started once a session; its commands speak to it during the test."""
    for name, value in _slurm_rig.environ.items():
        monkeypatch.setenv(name, value)
    yield _slurm_rig
    _slurm_rig.clear()


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size ("1m"), to be filled; the test is skipped, saying so, where that is refused."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, text=True
        )
        if mount.returncode:
            pytest.skip(f"DISK FULL NOT TESTED: mounting a tmpfs was refused: {mount.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class Filmloop:
    """The real command, in a process of its own, on one state folder."""

    def __init__(self, home: Path, *sets: str) -> None:
        # Cold unless a test says otherwise: a warm worker stays behind in every state folder for 20 minutes.
        self.home, self.sets = home, ("launcher.warm=false", *sets)

    def argv(self, *words: str) -> list[str]:
        """The words of the command; on the local site unless they name another."""
        site = [] if "--site" in words else ["--site", str(CHECKOUT / "site_configs/local.toml")]
        sets = [word for each in self.sets for word in ("--set", each)]
        return [sys.executable, "-m", "filmloop.cli", *words, *site, *sets]

    def env(self) -> dict[str, str]:
        """Its environment."""
        return {**os.environ, "FILMLOOP_HOME": str(self.home), "COLUMNS": "160"}

    def run(self, *words: str, code: int | None = 0, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run to the end; its exit code must be `code` (None: any)."""
        done = subprocess.run(
            self.argv(*words),
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, code: int | None = 0, timeout_s: float = 240) -> dict[str, Any]:
        """Run with `--json`; stdout must be one JSON object and nothing else."""
        value = json.loads(self.run(*words, "--json", code=code, timeout_s=timeout_s).stdout)
        assert isinstance(value, dict)
        return value

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start and come back at once."""
        return subprocess.Popen(
            self.argv(*words), env=self.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="session")
def filmloop() -> type[Filmloop]:
    """The class; tests make one for their own state folder."""
    return Filmloop
