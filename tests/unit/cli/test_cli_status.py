"""What `filmloop status` says of a registry of the site's own that is not well."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from filmloop.config.paths import Home
from filmloop.edge.lock import only_edge
from filmloop.edge.status import EdgeStatus, write_status
from filmloop.testing.mlflow_server import free_port


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that gives this status to whatever is asked; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, ""), (401, "wants a login"), (403, "wants a login"), (502, "answers with HTTP status 502")],
)
def test_a_registry_of_the_sites_own_is_told_of_as_it_answers(
    filmloop: Any, tmp_path: Path, status: int, said: str
) -> None:
    with answering(status) as port:
        uri = f"http://127.0.0.1:{port}"
        command = filmloop(tmp_path / "home", f"registry.uri={uri}")
        found = command.json("status")["registry"]
        shown = command.run("status").stdout.splitlines()[-1]
    assert (found["alive"], found["uri"]) == (not said, uri)
    assert said in found["problem"]
    assert said in shown
    assert (found["page"] in shown) if not said else "registry start" not in shown


def test_a_registry_of_the_sites_own_that_is_away_is_not_ours_to_start(filmloop: Any, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(uri.rsplit(":", 1)[1]))):
        pass
    shown = filmloop(tmp_path / "home", f"registry.uri={uri}").run("status").stdout.splitlines()[-1]
    assert f"{uri} does not answer" in shown
    assert "registry start" not in shown


@pytest.mark.parametrize(("age_s", "is_old"), [(0.0, False), (60.0, True)])
def test_an_edge_that_stages_nothing_or_cannot_write_its_status_is_told_of(
    filmloop: Any, tmp_path: Path, age_s: float, is_old: bool
) -> None:
    home = Home(tmp_path / "home")
    updated_utc = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    edge = EdgeStatus(
        pid=1, state="running", started_utc=updated_utc, updated_utc=updated_utc, site="local", stream="t",
        frames_in=9000, frames_inferred=9000, frames_unstaged={"disk_full": 8000},
    )  # fmt: skip
    with only_edge(home):
        write_status(home, edge)
        shown = filmloop(home.root).run("status").stdout
    assert "staged 0, not staged 8,000 {'disk_full': 8000}" in shown
    assert ("s old: the edge cannot write its status" in shown) == is_old


def test_a_level_that_is_none_is_told_of_and_changes_nothing(
    filmloop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMLOOP_LOG", "nope")
    done = filmloop(tmp_path / "home").run("status")
    assert "FILMLOOP_LOG=nope is no level" in done.stderr
    assert "not running; `filmloop registry start` starts it" in done.stdout
    monkeypatch.setenv("FILMLOOP_LOG", "Error")
    assert filmloop(tmp_path / "home").run("status").stderr == ""
