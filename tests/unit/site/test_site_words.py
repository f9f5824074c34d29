"""What the site check says of one rank, one thread, one core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from filmloop.bootstrap import open_site
from filmloop.checks import local


def test_one_rank_is_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (tmp_path / "site.toml").write_text("")
    one, two = (open_site(tmp_path / "site.toml", sets=[f"launcher.processes={n}"]) for n in (1, 2))
    assert local.launcher(one).detail == "torchrun with 1 rank of 1 thread on 1 core"
    assert local.launcher(two).detail == "torchrun with 2 ranks of 1 thread on 1 core"
