from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.testing.contracts.mover import MoverContract, MoverSite
from rigs.globus_mover import GlobusRig, globus_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusRig]:
    with globus_rig(tmp_path_factory.mktemp("globus")) as found:
        yield found


class TestGlobusMover(MoverContract):
    @pytest.fixture
    def site(self, rig: GlobusRig, tmp_path: Path) -> Iterator[MoverSite]:
        with rig.site(tmp_path) as site:
            yield MoverSite(edge=site.edge, cluster=site.cluster, make=site.make)
