"""The page about two facilities: what it has the reader type at the cluster's side works, and says what there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from globus_compute_endpoint.cli import app
from globus_compute_endpoint.endpoint.config.config import CoreEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import get_config, load_user_config_schema

from filmloop.config.loader import load_site
from filmloop.config.schema import GlobusLauncher

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs/howto/two-facilities.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CALL = re.compile(r"(?:^|[`/\"]|: )globus-compute-endpoint ([a-z][a-z-]+)((?: --?[a-z-]+| [a-z]+)*)", re.MULTILINE)
SOURCES = [
    PAGE,
    *((CHECKOUT / name).read_text() for name in ("site_configs/systemd/filmloop-endpoint.service",)),
    *(path.read_text() for path in (CHECKOUT / "pipeline/filmloop/adapters/globus").rglob("*.py")),
    *(path.read_text() for path in (CHECKOUT / "site_configs").glob("lcls-*.toml")),
]


def fence(word: str) -> str:
    (found,) = [text for text in FENCES if word in text]
    return str(found)


def test_every_command_for_the_endpoint_that_a_page_or_a_hint_shows_exists() -> None:
    context = click.Context(app)
    found = [match for text in SOURCES for match in CALL.findall(text)]
    assert {name for name, _ in found} >= {"start", "list", "enable-on-boot"}
    for name, rest in found:
        command = app.get_command(context, name)
        assert command is not None, name
        known = {option for param in command.params for option in param.opts}
        assert {word for word in rest.split() if word.startswith("-")} <= known, (name, rest)


def test_the_endpoints_folder_is_one_after_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/venv/bin:/usr/bin:/bin"}
    script = "umask 022\n" + fence("cp site_configs/endpoints/*") + fence("secret.env").replace("globus-compute-", ": ")
    subprocess.run(["bash", "-e"], input=script, text=True, cwd=CHECKOUT, env=environ, check=True, timeout=30)
    folder = tmp_path / ".globus_compute/filmloop"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert isinstance(get_config(folder), CoreEndpointConfig)
    assert load_user_config_schema(folder / "user_config_schema.json")
    assert yaml.safe_load((folder / "user_environment.yaml").read_text()) == {"PATH": environ["PATH"]}
    assert (folder / "secret.env").stat().st_mode & 0o777 == 0o600


def test_the_edges_secrets_are_for_root_alone_and_have_the_names_that_are_read(tmp_path: Path) -> None:
    from filmloop.adapters.globus.identity.who import SECRETS

    script = fence("install -d -m 755 /etc/filmloop").replace("/etc/filmloop", str(tmp_path / "etc"))
    subprocess.run(["bash", "-e"], input=script, text=True, check=True, timeout=30)
    file = tmp_path / "etc/globus.env"
    assert file.stat().st_mode & 0o777 == 0o600
    assert {line.partition("=")[0] for line in file.read_text().splitlines()} == set(SECRETS.values())
    assert "/etc/filmloop/globus.env" in (CHECKOUT / "site_configs/systemd/globus.conf").read_text()


def test_a_unit_of_the_page_runs_the_readers_site_file(tmp_path: Path) -> None:
    script = fence("systemctl daemon-reload").replace("/etc/systemd/system", str(tmp_path))
    (tmp_path / "systemctl").write_text("#!/bin/sh\n")
    (tmp_path / "systemctl").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", "-e"], input=script, text=True, cwd=CHECKOUT, env=environ, check=True, timeout=30)
    retrain = (tmp_path / "filmloop-retrain.service").read_text()
    assert "--site /opt/filmloop/my-site.toml" in retrain
    assert (tmp_path / "filmloop-retrain.service.d/globus.conf").exists()


def test_the_keys_that_the_page_has_the_reader_fill_in_are_those_that_are_empty() -> None:
    config = load_site(CHECKOUT / "site_configs/lcls-polaris.toml")
    assert isinstance(config.launcher, GlobusLauncher)
    rows = PAGE.split("## 4.")[1].split("## 5.")[0]
    for key in config.launcher.missing:
        assert f"`launcher.{key}`" in rows or f"`launcher.options.{key}`" in rows or f"`{key}`" in rows, key
    for key in ("globus.client_id", "mover.edge.collection", "mover.cluster.collection", "mover.cluster.host_path"):
        assert f"`{key}`" in rows
