"""The demo, as a new user runs it: what it must show, it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from filmloop.testing.mlflow_server import shared_server

pytestmark = pytest.mark.timeout(900)  # whole loops: on a busy machine they take their time


@pytest.mark.slow
def test_the_demo_shows_what_it_must(filmloop: Any, tmp_path: Path) -> None:
    # Steps and not seconds again: 600 are what two free cores do in half the demo's 25 s.
    command = filmloop(tmp_path, "training.hyper.max_steps=600", f"registry.uri={shared_server()}")
    report = command.json("demo", "--seconds", "300", timeout_s=800)
    assert list(report["checks"].values()) == [True] * 6, report["checks"]
    assert [act["version"] for act in report["acts"]] == ["1", "1", "2", "2", "1", "2"]
    assert report["frames_in"] == report["frames_inferred"] + sum(report["frames_dropped"].values())
    assert json.loads((Path(report["folder"]) / "summary.json").read_text()) == report
    assert Path(report["plot"]).read_bytes().startswith(b"\x89PNG")
