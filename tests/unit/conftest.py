"""A site for cycles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.adapters.local.mover import LocalMover
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.journal import CycleParts
from filmloop.ledger import Ledger
from filmloop.testing.fakes import MemoryRegistry
from rigs.cycle import FRAME_SHAPE, ScriptedTrainer, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = Home(tmp_path / "home")
    config = parse_site(
        {
            "frame": {"channels": 4, "energy_bins": 8},
            "training": {"min_frames": 50, "max_fresh_frames": 1000, "replay_frames": 40},
            "gate": {"min_frames": 100},
        }
    )
    trainer, registry = ScriptedTrainer(["win"]), MemoryRegistry(tmp_path / "registry")
    mover = LocalMover(edge_root=home.root, cluster_root=home.cluster, journal=home.moves, section=config.mover)
    with Ledger(home.ledger) as ledger:
        parts = CycleParts(
            config=config, home=home, ledger=ledger, mover=mover, launcher=trainer, registry=registry, stream="test",
            frame_shape=FRAME_SHAPE, cluster_root=home.cluster, code_commit="abc", poll_s=0.02,
        )  # fmt: skip
        yield World(parts, trainer, registry, ledger, home)
    mover.close()
