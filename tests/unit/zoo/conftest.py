"""The site of the zoo's suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rigs.zoo import Site, zoo_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """With one shard of frames and no version yet."""
    with zoo_site(tmp_path) as made:
        yield made
