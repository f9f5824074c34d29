"""The endpoint's template and schema, rendered and loaded by the endpoint package itself."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jinja2.meta
import jsonschema
import pytest
import yaml
from globus_compute_endpoint.endpoint.config import utils
from globus_compute_endpoint.endpoint.config.config import CoreEndpointConfig, UserEndpointConfig
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

from filmloop.config.loader import load_site
from filmloop.config.schema import GlobusLauncher
from unit.site.test_globus_sites import filled

FOLDER = Path(__file__).parents[3] / "site_configs/endpoints"
TEMPLATE = FOLDER / "user_config_template.yaml.j2"
SCHEMA = FOLDER / "user_config_schema.json"
# parsl looks the interface's address up and leaves the socket to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
QUEUE: dict[str, Any] = {"walltime": "00:20:00", "interface": "lo"}
PBS = {"engine": "pbs", "account": "physics", "queue": "debug", **QUEUE}
SLURM = {"engine": "slurm", **QUEUE}

Options = dict[str, Any]
Load = Callable[[Options], UserEndpointConfig]


def render(options: Options) -> str:
    me = MappedPosixIdentity(pwd.getpwuid(os.getuid()), [], None)
    schema = utils.load_user_config_schema(SCHEMA)
    text = utils.load_user_config_template(TEMPLATE)
    return utils.render_config_user_template(CoreEndpointConfig(), text, TEMPLATE, me, schema, options, {})


@pytest.fixture
def load() -> Iterator[Load]:
    """The engine's configuration as an endpoint makes it of options."""
    made: list[UserEndpointConfig] = []

    def run(options: Options) -> UserEndpointConfig:
        config = utils.load_config_yaml(render(options))
        assert isinstance(config, UserEndpointConfig)
        made.append(config)
        return config

    yield run
    for config in made:
        config.engine.shutdown()


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"engine": "control"}, "ThreadPoolEngine"),
        ({"engine": "processes", "workers": 1}, "ProcessPoolEngine"),
        ({"engine": "local"}, "GlobusComputeEngine"),
        (PBS, "GlobusComputeEngine"),
        (PBS | {"mpi": True, "nodes_per_block": 2}, "GlobusMPIEngine"),
        (SLURM, "GlobusComputeEngine"),
        (SLURM | {"mpi": True, "nodes_per_block": 2}, "GlobusMPIEngine"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['engine']}-{value.get('nodes_per_block', 1)}",
)
def test_each_kind_of_options_gives_an_engine_that_loads(load: Load, options: Options, engine: str) -> None:
    assert type(load(options).engine).__name__ == engine


@pytest.mark.parametrize("name", ["lcls-polaris", "lcls-perlmutter"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_options_of_each_site_file_give_an_engine(load: Load, name: str, nodes: int) -> None:
    more = {"launcher.nodes": 2, "launcher.options.nodes_per_block": 2, "launcher.options.mpi": True}
    launcher = filled(name, **(more if nodes == 2 else {})).launcher
    assert isinstance(launcher, GlobusLauncher)
    # The interface of the facility's login nodes is not one of this machine.
    engine = load(launcher.options | {"interface": "lo"}).engine
    assert type(engine).__name__ == ("GlobusMPIEngine" if nodes == 2 else "GlobusComputeEngine")
    assert engine.executor.provider.nodes_per_block == nodes
    assert type(load(launcher.control).engine).__name__ == "ThreadPoolEngine"


@pytest.mark.parametrize("name", ["lcls-polaris", "lcls-perlmutter"])
def test_a_site_file_that_nobody_filled_in_is_refused_by_the_endpoint(name: str) -> None:
    launcher = load_site(FOLDER.parent / f"{name}.toml").launcher
    assert isinstance(launcher, GlobusLauncher)
    with pytest.raises(jsonschema.ValidationError, match=r"non-empty|too short"):
        render(launcher.options)


def test_a_job_of_pbs_asks_for_what_the_options_say(load: Load) -> None:
    lines = "#PBS -l filesystems=home:eagle\n#PBS -k doe"
    engine = load(PBS | {"select_options": "system=polaris", "scheduler_options": lines, "cpus_per_node": 32}).engine
    provider = engine.executor.provider
    assert (engine.executor.address, type(provider).__name__) == ("127.0.0.1", "PBSProProvider")
    assert (provider.account, provider.queue, provider.walltime) == ("physics", "debug", "00:20:00")
    assert (provider.select_options, provider.cpus_per_node) == ("system=polaris", 32)
    assert provider.scheduler_options == lines


def test_a_job_of_slurm_asks_for_what_the_options_say(load: Load) -> None:
    provider = load(
        SLURM | {"account": "m1", "qos": "debug", "constraint": "gpu", "gpus_per_node": 4}
    ).engine.executor.provider
    for line in ("--account=m1", "--qos=debug", "--constraint=gpu", "--gpus-per-node=4", "--exclusive"):
        assert f"#SBATCH {line}\n" in provider.scheduler_options
    assert "--partition" not in provider.scheduler_options


@pytest.mark.parametrize("options", [PBS, SLURM], ids=lambda options: options["engine"])
def test_one_function_has_the_nodes_of_a_job_for_itself_and_none_is_kept_without_work(
    load: Load, options: Options
) -> None:
    engine = load(options).engine
    assert engine.executor.max_workers_per_node == 1
    assert list(engine.executor.available_accelerators) == []
    provider = engine.executor.provider
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (0, 0, 1)
    assert engine._job_status_kwargs["max_idletime"] == 60


@pytest.mark.parametrize("options", [PBS, SLURM, SLURM | {"mpi": True}], ids=["pbs", "slurm", "mpi"])
def test_a_job_takes_no_function_in_its_second_half_unless_the_options_say_when(load: Load, options: Options) -> None:
    assert load(options | {"walltime": "01:10:30"}).engine.executor.drain_period == 2115
    assert load(options | {"drain_period": 900}).engine.executor.drain_period == 900
    assert load({"engine": "local"}).engine.executor.drain_period is None


def test_jobs_have_the_path_of_the_endpoint_and_lines_of_the_site_after_it(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/a venv/bin:/usr/bin")
    lines = "module load \"x\"\nexport NAME='a b' # $HOME \\ {{ x }}"
    assert load(SLURM | {"worker_init": lines}).engine.executor.provider.worker_init == (
        f"export PATH='/a venv/bin:/usr/bin'\n{lines}\n"
    )


def submitted(engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the batch script that a block of this engine is, as parsl hands it to the queue."""
    for name, answer in (("qsub", "17.pbs"), ("sbatch", "Submitted batch job 17"), ("sacct", "")):
        command = folder / name
        command.write_text(
            f'#!/bin/sh\nfor script; do :; done\ncp "$script" {folder}/script 2>/dev/null\necho {answer}\n'
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    provider = engine.executor.provider
    provider.script_dir = str(folder)
    assert provider.submit("globus-compute-endpoint python-exec worker", 1, "job")
    script = (folder / "script").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    return script.splitlines()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "lcls-polaris",
            {
                "#PBS -l walltime=00:30:00", "#PBS -l select=1:ncpus=32:system=polaris",
                "#PBS -l filesystems=home:eagle", "#PBS -l place=scatter",
            },
        ),
        (
            "lcls-perlmutter",
            {
                "#SBATCH --nodes=1", "#SBATCH --time=30", "#SBATCH --ntasks-per-node=1", "#SBATCH --constraint=gpu",
                "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=128", "#SBATCH --exclusive",
            },
        ),
    ],
)  # fmt: skip
def test_the_batch_script_of_a_site_asks_for_what_its_queue_wants(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: set[str]
) -> None:
    launcher = filled(name).launcher
    assert isinstance(launcher, GlobusLauncher)
    engine = load(launcher.options | {"interface": "lo"}).engine
    lines = submitted(engine, tmp_path, monkeypatch)
    assert wanted <= set(lines)
    at = lines.index("globus-compute-endpoint python-exec worker")
    assert any(line.startswith("export PATH=") for line in lines[:at])


def test_an_option_cannot_become_another_key(load: Load) -> None:
    engine = load(PBS | {"queue": 'debug"\n    walltime: "99:00:00'}).engine
    assert engine.executor.provider.walltime == "00:20:00"


def test_an_interface_that_this_host_has_not_is_told(load: Load) -> None:
    with pytest.raises(click.ClickException, match="No such device"):
        load(SLURM | {"interface": "hsn99"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "'engine' is a required property"),
        ({"engine": "process"}, "'process' is not one of ['control', 'processes', 'local', 'pbs', 'slurm']"),
        (PBS | {"acount": "x"}, "'acount' was unexpected"),
        (PBS | {"account": ""}, "''"),
        ({key: value for key, value in PBS.items() if key != "queue"}, "'queue' is a required property"),
        (PBS | {"walltime": "20 minutes"}, "'20 minutes' does not match"),
        ({"engine": "slurm", "walltime": "00:10:00"}, "'interface' is a required property"),
        (SLURM | {"gpus_per_node": "4"}, "'4' is not of type 'integer'"),
        ({"engine": "local", "mpi": True}, "'local' is not one of ['pbs', 'slurm']"),
        (SLURM | {"interface": "hsn0; rm"}, "'hsn0; rm' does not match"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_by_its_name(options: Options, words: str) -> None:
    with pytest.raises(jsonschema.ValidationError) as caught:
        render(options)
    assert words in caught.value.message


def test_the_template_knows_every_option_of_the_schema_and_no_other() -> None:
    asked = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(TEMPLATE.read_text()))
    assert asked - {"_GC"} == set(json.loads(SCHEMA.read_text())["properties"])


def test_the_endpoint_itself_loads_and_has_no_engine() -> None:
    config = utils.load_config_yaml((FOLDER / "config.yaml").read_text())
    assert isinstance(config, CoreEndpointConfig)
    assert config.amqp_port in (443, 5671, 5672)


def test_the_environment_has_no_path_that_is_nobodys() -> None:
    assert yaml.safe_load((FOLDER / "user_environment.yaml").read_text()) is None
