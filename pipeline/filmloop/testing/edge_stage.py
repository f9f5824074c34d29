"""One stage of an edge in a process of its own, with a registry in a folder: for tests and benchmarks that swap."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filmloop import edge_stage
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.edge.ring import SEATS
from filmloop.testing.fakes import FolderRegistry

if TYPE_CHECKING:
    from filmloop.edge.ring import FrameRing
    from filmloop.edge.stages.base import Stage


def make_stage(place: str, ring: FrameRing) -> Stage:
    """As a site's, but that the registry is the folder `registry` of the spec."""
    spec = ring.spec.read()
    if place not in SEATS or not spec["with_registry"]:
        return edge_stage.make_stage(place, ring)
    from filmloop.edge.models import ModelStore
    from filmloop.edge.stages.inference import InferenceStage
    from filmloop.edge.stages.seated import SeatedInference

    config, home = parse_site(spec["config"]), Home(Path(spec["home"]))
    folder = Path(spec["registry"])
    store = ModelStore(config, home, place=place)
    if spec["standby"]:
        return SeatedInference(place, ring, config, store=store, registry=lambda: FolderRegistry(folder))
    return InferenceStage(ring, config, store=store, registry=lambda: FolderRegistry(folder))


if __name__ == "__main__":
    edge_stage.main(sys.argv[1], sys.argv[2], make_stage)
