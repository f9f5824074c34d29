"""The examples on the pages run: commands that change nothing, the snippets about shards, the worked model."""

from __future__ import annotations

import importlib
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from filmloop.bundle import verify_bundle
from filmloop.core.documents import ModelChoice
from filmloop.testing.shards import example_block, write_shard
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop_models import catalog

CHECKOUT = Path(__file__).parents[2]
SYSTEMD = CHECKOUT / "site_configs/systemd"
ENDPOINT_UNIT = SYSTEMD / "filmloop-endpoint.service"
CHANGE_NOTHING = ("status", "history", "site check", "shards list", "shards verify", "models history", "--version")


def fences(page: str, language: str) -> list[str]:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def harmless_commands() -> list[str]:
    lines = "".join(fences("README.md", "sh") + fences("docs/tutorial.md", "sh")).splitlines()
    plain = [line.split("#")[0].strip().removeprefix(".venv/bin/") for line in lines]
    return sorted({line for line in plain if line.removeprefix("filmloop ") in CHANGE_NOTHING})


def test_the_pages_show_commands_that_can_be_run_here() -> None:
    assert {"filmloop status", "filmloop site check"} <= set(harmless_commands())


@pytest.mark.parametrize("command", harmless_commands())
def test_a_command_that_changes_nothing_runs_on_an_empty_state_folder(
    command: str, tmp_path: Path, filmloop: Any
) -> None:
    words = shlex.split(command)[1:]
    if words == ["--version"]:
        subprocess.run([sys.executable, "-m", "filmloop.cli", *words], check=True, timeout=30)
    else:
        filmloop(tmp_path / "home").run(*words)


def test_the_snippets_about_shards_read_a_real_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 120 frames: the snippets read the first 100.
    sealed = write_shard(tmp_path, example_block(120, first_pulse_id=500), version=3)
    names = {"SHARD": str(sealed.group_path), "MANIFEST": str(sealed.manifest_path)}
    snippets = fences("docs/explanation/shards.md", "python")
    assert len(snippets) == 4
    for snippet in snippets:
        exec(compile(snippet, "shards.md", "exec"), dict(names))
    counts = int(example_block(120, first_pulse_id=500).counts_NCE.sum())
    assert capsys.readouterr().out.splitlines() == [
        "[2 0 0 5] [0 4] [2 2 2 7]",
        "True",
        "(100, 4, 16) 500 test/run000001/00000000",
        f"{{'frame': 120, 'channel': 4, 'energy': 16}} {counts}",
        "100 100.0 {'3': 120}",
    ]


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The worked example as a module that can be imported."""
    (snippet,) = fences("docs/howto/add-a-model.md", "python")
    (tmp_path / "my_models.py").write_text(snippet, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "my_models:SPEC"
    sys.modules.pop("my_models", None)


@pytest.fixture
def _trainer_left_no_trace() -> Iterator[None]:
    """Training in this process sets a signal handler, a log handler and the number of threads."""
    handler, threads, root = signal.getsignal(signal.SIGTERM), torch.get_num_threads(), logging.getLogger("filmloop")
    log = root.handlers[:], root.level, root.propagate
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    root.handlers[:], root.level, root.propagate = log


@pytest.mark.usefixtures("_trainer_left_no_trace")
def test_the_worked_model_trains_into_a_bundle_that_verifies(my_models: str, tmp_path: Path) -> None:
    from filmloop.training.entry import main

    shard = staged_frames(tmp_path / "stage", simulated_counts(400))
    model = ModelChoice(name=my_models, frame_shape=(16, 128), hyper={"taps": 15})
    job = small_job(tmp_path / "run", shard).model_copy(update={"model": model})
    job.write(tmp_path / "run/job.json")
    assert main([str(tmp_path / "run/job.json")]) == 0
    result = verify_bundle(tmp_path / "run/bundle")
    assert result.model == model
    assert result.loss_last < result.loss_first


def test_the_worked_model_refuses_what_its_shape_rule_says(my_models: str) -> None:
    with pytest.raises(ValueError, match="fewer than 16 energies"):
        catalog.get(my_models).module((4, 8))


def unit_files() -> list[Path]:
    return sorted(SYSTEMD.glob("filmloop-*"))


@pytest.mark.parametrize("path", [*unit_files(), CHECKOUT / "site_configs/cron/filmloop"], ids=lambda path: path.name)
def test_every_command_of_a_unit_or_the_crontab_exists(path: Path) -> None:
    from filmloop.cli.reference import commands

    found = re.findall(
        r"/\.venv/bin/filmloop ((?:[a-z]+ ?)+)((?:--\S+ ?(?:/\S+)? ?)*)", path.read_text(encoding="utf-8")
    )
    assert found or path.suffix == ".timer" or path == ENDPOINT_UNIT
    for words, options in found:
        params = commands()[words.strip()].params
        known = {option for param in params for option in param.opts}
        assert {word for word in options.split() if word.startswith("--")} <= known, path.name


def test_the_endpoints_unit_calls_the_endpoint_package_as_it_is() -> None:
    from globus_compute_endpoint.cli import app

    (name, folder) = re.findall(r"/globus-compute-endpoint (\S+) (\S+)$", ENDPOINT_UNIT.read_text(), re.MULTILINE)[0]
    assert name in app.list_commands(click.Context(app))
    assert f"~/.globus_compute/{folder}" in (CHECKOUT / "site_configs/endpoints/user_environment.yaml").read_text()


def test_no_unit_in_which_ranks_run_is_ended_with_one_that_ran_out_of_memory() -> None:
    """OOMPolicy=stop is the default (systemd.service(5)): the cycle that would submit the job again would be ended as well."""
    for name in ("worker", "retrain", "drift", "edge"):
        assert "OOMPolicy=continue\n" in (SYSTEMD / f"filmloop-{name}.service").read_text(encoding="utf-8"), name


def test_the_units_pass_systemd_analyze(tmp_path: Path) -> None:
    """With the paths of this machine in place of /opt/filmloop, as the page tells the reader to do."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed: units are only parsed, in the test above")
    binary = tmp_path / "filmloop"
    binary.write_text("#!/bin/sh\n", encoding="utf-8")
    binary.chmod(0o755)
    units = []
    for unit in unit_files():
        text = unit.read_text(encoding="utf-8").replace("/opt/filmloop/.venv/bin/filmloop", str(binary))
        text = text.replace("%h/filmloop/.venv/bin/globus-compute-endpoint", str(binary))
        units.append(tmp_path / unit.name)
        units[-1].write_text(text, encoding="utf-8")
    for name in ("filmloop-retrain.service.d", "filmloop-drift.service.d"):
        (tmp_path / name).mkdir()
        shutil.copy(SYSTEMD / "globus.conf", tmp_path / name)
    assert len(units) == 7
    done = subprocess.run(
        [tool, "verify", *map(str, units)], capture_output=True, text=True, timeout=60, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (0, "")
