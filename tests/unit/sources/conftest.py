"""The public sample recordings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder that FILMLOOP_DATA names; the test is skipped, saying so, without it."""
    folder = Path(os.environ.get("FILMLOOP_DATA", Path(__file__).parents[4] / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"FILMLOOP_DATA not found: {folder}")
    return folder
