"""A state folder that may not even be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from filmloop.bootstrap import open_site
from filmloop.checks.this_machine import home

SITE = Path(__file__).parents[3] / "site_configs/local.toml"


def test_a_folder_that_belongs_to_somebody_else_is_a_finding_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    stat, access = os.stat, os.access

    def forbidden(path: object, *args: object, **given: object) -> object:
        # As for everybody but the owner of a folder of mode 0700; root, who runs the tests, may look into all.
        if str(path).startswith(f"{theirs}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **given)  # type: ignore[call-overload]

    monkeypatch.setenv("FILMLOOP_HOME", str(theirs / "home"))
    monkeypatch.setattr(os, "stat", forbidden)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != theirs and access(path, mode))
    found = home(open_site(SITE))
    assert (found.state, found.detail) == ("fail", f"{theirs} is not writable")
    assert "FILMLOOP_HOME" in found.hint
