"""The site files of two facilities: complete, and with nothing in them that is nobody's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from filmloop.bootstrap import Site, open_launcher, open_mover
from filmloop.config.loader import load_site
from filmloop.config.paths import Home
from filmloop.config.schema import GlobusLauncher, GlobusMover, SiteConfig
from filmloop.core.errors import ConfigError

FOLDER = Path(__file__).parents[3] / "site_configs"
ID = "3f1f2a54-9d6b-4a1b-8f4e-0c5d9be7a0{:02d}"
# What a person fills in, by the file.
EMPTY = {
    "lcls-polaris": {
        "globus.client_id", "globus.weights.client_id", "mover.edge.collection", "mover.cluster.collection",
        "mover.cluster.host_path", "launcher.endpoint", "launcher.options.account", "launcher.options.queue",
    },
    "lcls-polaris-facility": {
        "globus.client_id", "mover.edge.collection", "mover.cluster.path", "mover.cluster.host_path",
        "launcher.python", "launcher.options.account", "launcher.options.queue",
    },
    "lcls-perlmutter": {
        "globus.client_id", "mover.edge.collection", "mover.cluster.path", "mover.cluster.host_path",
        "launcher.endpoint", "launcher.options.account", "launcher.options.qos",
    },
}  # fmt: skip
# The keys that ALCF's page lists, https://docs.alcf.anl.gov/services/globus-compute/.
ALCF_KEYS = {
    "queue", "account", "walltime", "nodes_per_block", "max_workers_per_node", "max_idletime", "init_blocks",
    "min_blocks", "max_blocks", "launcher_type", "worker_init", "scheduler_options", "select_options",
}  # fmt: skip


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.toml"


def empty_keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        if isinstance(value, dict):
            found |= empty_keys(value, f"{prefix}{key}.")
        elif value == "":
            found.add(prefix + key)
    return found


def filled(name: str, **more: Any) -> SiteConfig:
    """The site file as its people fill it in."""
    values: dict[str, Any] = {}
    for number, key in enumerate(sorted(EMPTY[name])):
        last = key.rpartition(".")[2]
        values[key] = f"/project/{last}" if last in ("path", "host_path", "python") else ID.format(number)
    return load_site(path_of(name), overrides=values | more)


def sections(config: SiteConfig) -> tuple[GlobusMover, GlobusLauncher]:
    assert isinstance(config.mover, GlobusMover)
    assert isinstance(config.launcher, GlobusLauncher)
    return config.mover, config.launcher


@pytest.mark.parametrize("name", EMPTY)
def test_what_a_person_has_to_fill_in_is_empty_and_nothing_else(name: str) -> None:
    assert empty_keys(tomllib.loads(path_of(name).read_text())) == EMPTY[name]


@pytest.mark.parametrize("name", EMPTY)
def test_every_empty_key_is_named_as_missing_until_it_is_filled_in(name: str) -> None:
    config = load_site(path_of(name))
    mover, launcher = sections(config)
    options = {key.rpartition(".")[2] for key in EMPTY[name] if key.startswith("launcher.")}
    assert set(launcher.missing) == options
    assert {f"mover.{key}" for key in mover.missing} == {key for key in EMPTY[name] if key.startswith("mover.")}
    mover, launcher = sections(filled(name))
    assert (mover.missing, launcher.missing) == ((), ())


@pytest.mark.parametrize("name", EMPTY)
def test_a_cycle_is_refused_until_every_key_is_filled_in(name: str, tmp_path: Path) -> None:
    for opened in (open_mover, open_launcher):
        with pytest.raises(ConfigError, match="has empty keys") as caught:
            opened(Site(file=path_of(name), config=load_site(path_of(name)), home=Home(tmp_path)))
        for key in EMPTY[name] - {"globus.weights.client_id"}:
            assert key.rpartition(".")[2] in caught.value.message
        opened(Site(file=path_of(name), config=filled(name), home=Home(tmp_path)))


@pytest.mark.parametrize("name", EMPTY)
def test_the_facts_of_a_site_file_say_where_they_are_from(name: str) -> None:
    head = path_of(name).read_text().split("schema_version")[0]
    assert len(re.findall(r"https://\S+", head)) >= 3
    assert "Not run between the two yet" in head


@pytest.mark.parametrize("name", EMPTY)
def test_a_job_has_its_node_for_itself_and_a_rank_for_each_gpu(name: str) -> None:
    _, launcher = sections(filled(name))
    assert (launcher.processes_per_node, launcher.options["nodes_per_block"]) == (4, 1)
    assert launcher.options.get("max_workers_per_node", 1) == 1


def test_options_for_the_facilitys_endpoint_are_among_those_that_it_has() -> None:
    _, launcher = sections(filled("lcls-polaris-facility"))
    assert set(launcher.options) <= ALCF_KEYS
    assert launcher.control == {}


def test_who_logs_in_fits_the_collections() -> None:
    """An application has guest collections alone: a mapped one maps people to accounts."""
    for name in EMPTY:
        config = filled(name)
        mover, _ = sections(config)
        if mover.edge.mapped or mover.cluster.mapped:
            assert config.globus.login == "user", name
