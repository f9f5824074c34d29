"""What several of these suites share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rigs.edge_service import Versions


@pytest.fixture(scope="module")
def versions_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Versions]:
    """Makes a registry with a version for every seed."""
    return lambda *seeds: Versions(tmp_path_factory.mktemp("versions"), seeds)
