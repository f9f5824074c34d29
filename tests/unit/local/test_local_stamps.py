"""What counts as changed among the files that a process has loaded."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.adapters.local.stamps import Stamps

NAME = "filmloop_test_loaded"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module that this process has loaded."""
    path = tmp_path / f"{NAME}.py"
    path.write_text("version = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(NAME)
    yield path
    del sys.modules[NAME]


def test_a_file_that_was_changed_after_it_was_loaded_counts_as_changed(loaded: Path) -> None:
    stamps = Stamps(time.time_ns())
    assert stamps.changed() == ""
    loaded.write_text("version = 23\n")
    assert stamps.changed() == str(loaded)


def test_a_file_that_was_changed_while_it_was_loaded_counts_as_changed(loaded: Path) -> None:
    assert Stamps(loaded.stat().st_ctime_ns - 1).changed() == str(loaded)


def test_a_file_that_is_as_the_process_before_found_it_was_not_changed_whatever_the_clock_says(loaded: Path) -> None:
    before = Stamps(0)
    assert before.changed()
    after = Stamps(0, known=before.digest)
    assert after.changed() == ""
    loaded.write_text("version = 23\n")
    assert after.changed() == str(loaded)


def test_a_file_that_is_not_as_the_process_before_found_it_is_in_doubt(loaded: Path) -> None:
    before = Stamps(0)
    loaded.write_text("version = 23\n")
    assert Stamps(loaded.stat().st_ctime_ns - 1, known=before.digest).changed() == str(loaded)
