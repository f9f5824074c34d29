"""A registry that is started for a command is told of, whatever tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.adapters.mlflow import server
from filmloop.bootstrap import open_site, registry_uri
from filmloop.cli.opening import say
from filmloop.cli.output import Progress

SITE = Path(__file__).parents[3] / "site_configs/local.toml"


@pytest.fixture(autouse=True)
def _comes_up_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server itself has tests with a real one; here its start takes no time."""
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path))

    def ensure_server(*_: object, announce: server.Announce, wanted: server.Wanted) -> str:
        announce("Starting the MLflow server (5 s or so) ...")
        return "http://127.0.0.1:5050"

    monkeypatch.setattr(server, "ensure_server", ensure_server)


def test_that_it_stays_and_how_to_end_it_is_told_by_a_plain_line_and_beside_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = open_site(SITE)
    registry_uri(site, start=True, tell=say)
    with Progress() as tell:
        tell("read", "frames.h5")
        registry_uri(site, start=True, tell=tell)
        tell("fetch", "champion")
    told = [line for line in capsys.readouterr().err.splitlines() if "`filmloop registry stop` ends it" in line]
    assert len(told) == 2
    assert all("the registry is at http://127.0.0.1:5050 and stays" in line for line in told)
