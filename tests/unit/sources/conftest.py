"""The public sample recordings, and wires to send over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rigs.wire import Wire


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder that FILMLOOP_DATA names; the test is skipped, saying so, without it."""
    folder = Path(os.environ.get("FILMLOOP_DATA", Path(__file__).parents[4] / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"FILMLOOP_DATA not found: {folder}")
    return folder


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Any]:
    made: list[Wire] = []

    def make(**keys: object) -> Wire:
        made.append(Wire(tmp_path, **keys))
        return made[-1]

    yield make
    for wire in made:
        wire.close()
