"""The promises of a frame source, over every source there is."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.config.schema import ReplaySource, SimulatorSource
from filmloop.testing.contracts.source import SourceContract, SourceFactory
from filmloop.testing.shards import example_block, write_shard

SHAPE = (4, 16)


class TestSimulator(SourceContract):
    # More than two of the simulator's blocks of 256 frames.
    frames = 600

    @pytest.fixture
    def make_source(self) -> SourceFactory:
        section = SimulatorSource(rate_hz=0, frames=self.frames, run_number=3)
        return lambda: build_source(section, SHAPE)


class TestLabelledSimulatorAtARate(SourceContract):
    finite = False

    @pytest.fixture
    def make_source(self) -> SourceFactory:
        section = SimulatorSource(rate_hz=3000, labelled=True)
        return lambda: build_source(section, SHAPE)


class TestReplayOfCookieNetAE(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> SourceFactory:
        block = example_block(150, frame_shape=SHAPE, labelled=True)
        with h5py.File(tmp_path / "set.h5", "w") as file:
            for name, part in {"test": slice(0, 40), "train": slice(40, 150)}.items():
                file[f"X_{name}"] = block.counts_NCE[part].astype(np.int16)
                file[f"Y_{name}"] = block.label_NCE[part].astype(np.float16)
        section = ReplaySource(path=str(tmp_path / "set.h5"), use_labels=True)
        return lambda: build_source(section, SHAPE)


class TestReplayOfStackedInALoop(SourceContract):
    finite = False

    @pytest.fixture
    def make_source(self, tmp_path: Path) -> SourceFactory:
        with h5py.File(tmp_path / "stacked.h5", "w") as file:
            file["Ximg"] = example_block(60, frame_shape=SHAPE).counts_NCE
        section = ReplaySource(path=str(tmp_path / "stacked.h5"), loop=True)
        return lambda: build_source(section, SHAPE)


class TestReplayOfSingleShots(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> SourceFactory:
        block = example_block(150, frame_shape=SHAPE, labelled=True)
        with h5py.File(tmp_path / "shots.h5", "w") as file:
            for row in range(150):
                file[f"{row:04x}/Ximg"] = block.counts_NCE[row].astype(np.uint16)
                file[f"{row:04x}/Ypdf"] = block.label_NCE[row]
        section = ReplaySource(path=str(tmp_path / "shots.h5"), use_labels=True)
        return lambda: build_source(section, SHAPE)


class TestReplayOfShards(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> SourceFactory:
        # Two runs, a gap in the pulse ids of the first.
        write_shard(tmp_path, example_block(50, first_pulse_id=100, frame_shape=SHAPE), seq=0)
        write_shard(tmp_path, example_block(40, first_pulse_id=175, frame_shape=SHAPE), seq=1)
        write_shard(tmp_path, example_block(60, first_pulse_id=7, frame_shape=SHAPE, run_number=2), seq=2)
        section = ReplaySource(path=str(tmp_path))
        return lambda: build_source(section, SHAPE)
