from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.adapters.local.mover import LocalMover
from filmloop.config.schema import LocalMover as MoverSection
from filmloop.testing.contracts.mover import MoverContract, MoverSite


class TestLocalMover(MoverContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[MoverSite]:
        edge, cluster = tmp_path / "edge", tmp_path / "cluster"
        edge.mkdir()
        cluster.mkdir()
        made: list[LocalMover] = []

        def make() -> LocalMover:
            mover = LocalMover(
                edge_root=edge, cluster_root=cluster, journal=tmp_path / "moves", section=MoverSection(deadline_s=60)
            )
            made.append(mover)
            return mover

        yield MoverSite(edge=edge, cluster=cluster, make=make)
        for mover in made:
            mover.close()
