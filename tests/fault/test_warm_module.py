"""Modules that the warm worker forks for a caller, and what becomes of them when something is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from filmloop.adapters.local.warmchild import WarmChild
from filmloop.adapters.local.workerclient import WarmWorker
from filmloop.adapters.mlflow.processes import start_ticks
from filmloop.core.retry import wait_until
from filmloop.shipping import local_bundle
from filmloop.zoo.scorer import Scorer
from rigs.warm import gone, kill, ready
from rigs.zoo import POLICY, zoo_site

pytestmark = pytest.mark.timeout(600)  # a worker loads torch: 3 s, minutes on a machine that is busy with other things
MODULE = "modul_e"
SOURCE = """
import os, sys, time
print(sys.argv[1:], os.getcwd(), os.environ.get("OF_THE_CALLER"), "torch" in sys.modules, flush=True)
print(sys.stdin.read(), file=sys.stderr)
if sys.argv[1] == "sleep":
    time.sleep(600)  # until it is killed
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmWorker]:
    """One worker, with a module that it can find."""
    found = WarmWorker(tmp_path_factory.mktemp("warm") / "worker", idle_s=300.0)
    path = tmp_path_factory.mktemp("modules")
    (path / f"{MODULE}.py").write_text(SOURCE)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{path}{os.pathsep}{before}"
    try:
        yield found
    finally:
        os.environ["PYTHONPATH"] = before
        found.stop()


@pytest.fixture
def warm(worker: WarmWorker) -> WarmWorker:
    worker.start()
    ready(worker)
    return worker


def begun(worker: WarmWorker, log: Path, *args: str) -> WarmChild:
    with log.open("wb") as out:
        child = worker.start_module(MODULE, args, out.fileno())
    assert child is not None
    wait_until(lambda: log.read_text() or None, deadline_s=60, what="the module's first word")
    return child


def ended(pid: int) -> None:
    wait_until(lambda: True if start_ticks(pid) is None else None, deadline_s=30, what=f"the end of {pid}")


def keeper_of(child: WarmChild) -> int:
    return int(Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_module_runs_as_python_would_run_it_and_with_what_the_worker_has_loaded(
    warm: WarmWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_CALLER", "yes")
    monkeypatch.chdir(tmp_path)
    before = warm.status()["jobs"]
    child = begun(warm, tmp_path / "said", "5", "b")
    assert child.poll() is None
    child.communicate("told", timeout=60)
    assert child.returncode == child.poll() == 5
    assert (tmp_path / "said").read_text() == f"['5', 'b'] {tmp_path} yes True\ntold\n"
    assert warm.status()["jobs"] == before, "it is no job"


def test_a_module_is_waited_for_only_so_long_and_can_be_killed(warm: WarmWorker, tmp_path: Path) -> None:
    child = begun(warm, tmp_path / "said", "sleep")
    with pytest.raises(subprocess.TimeoutExpired):
        child.communicate("", timeout=0.2)
    child.kill()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    ended(child.pid)


def test_a_module_dies_with_its_keeper(warm: WarmWorker, tmp_path: Path) -> None:
    child = begun(warm, tmp_path / "said", "sleep")
    kill(keeper_of(child))
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    ended(child.pid)


CALLER = """
import os, signal, sys
from pathlib import Path
from filmloop.adapters.local.workerclient import WarmWorker
child = WarmWorker(Path(sys.argv[1]), idle_s=300).start_module(sys.argv[2], ["sleep"], 2)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_module_dies_with_its_caller(warm: WarmWorker) -> None:
    argv = [sys.executable, "-c", CALLER, str(warm.folder), MODULE]
    killed = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    ended(int(killed.stdout))


def test_a_module_lives_on_when_the_worker_is_killed(warm: WarmWorker, tmp_path: Path) -> None:
    child = begun(warm, tmp_path / "said", "0")
    kill(ready(warm))
    gone(warm)
    child.communicate("told", timeout=60)
    assert child.returncode == 0
    assert (tmp_path / "said").read_text().endswith("told\n")


def test_without_a_worker_that_is_ready_there_is_no_module(tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as out:
        alone = WarmWorker(tmp_path / "none", idle_s=300.0)
        assert alone.start_module(MODULE, ["0"], out.fileno()) is None
        alone.start()
        try:
            assert alone.status()["state"] == "starting"
            assert alone.start_module(MODULE, ["0"], out.fileno()) is None
            alone.folder.chmod(0o777)
            ready(alone)
            assert alone.start_module(MODULE, ["0"], out.fileno()) is None, "anybody may have made that socket"
        finally:
            alone.folder.chmod(0o700)
            alone.stop()
    assert (tmp_path / "said").read_text() == ""


def test_a_scorer_that_the_worker_forks_finds_what_a_cold_one_finds(warm: WarmWorker, tmp_path: Path) -> None:
    started: list[WarmChild | None] = []

    def start(module: str, args: Sequence[str], output: int) -> WarmChild | None:
        started.append(warm.start_module(module, args, output))
        return started[-1]

    with zoo_site(tmp_path / "site") as site:
        bundles = {
            version: local_bundle(site.home, site.registry, version) for version in (site.add(0.3), site.add(0.6))
        }
        cold = site.score(bundles)
        with Scorer(tmp_path / "work", deadline_s=120.0, warm=start) as scorer:
            scorer.begin(site.manifests(), POLICY, most=1000)
            assert scorer.score(bundles) == cold
    assert len(cold.reports) == 2
    (child,) = started
    assert child is not None
    ended(child.pid)
