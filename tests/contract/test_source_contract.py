"""The promises of a frame source, over every source there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.zmq_raw import encode
from filmloop.adapters.sources.zmq_send import hdf5_image
from filmloop.config.schema import PvAccessSource, ReplaySource, SimulatorSource, ZeroMqSource
from filmloop.testing.contracts.source import SourceContract, SourceFactory
from filmloop.testing.live import publishing, pushing
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


class TestPool(SourceContract):
    # More than two rounds of the pool.
    frames = 600

    @pytest.fixture
    def make_source(self) -> SourceFactory:
        section = SimulatorSource(rate_hz=0, frames=self.frames, pool_frames=256)
        return lambda: build_source(section, SHAPE)


class TestLabelledPoolAtARate(SourceContract):
    finite = False

    @pytest.fixture
    def make_source(self) -> SourceFactory:
        section = SimulatorSource(rate_hz=3000, pool_frames=100, labelled=True)
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


class TestReplayOfHitLists(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> SourceFactory:
        counts_NB = example_block(150, frame_shape=SHAPE).counts_NCE.reshape(150, -1)
        with h5py.File(tmp_path / "hits.h5", "w") as file:
            file["hits"] = np.concatenate([np.repeat(np.arange(64), counts) for counts in counts_NB]).astype(np.uint16)
            file["hits"].attrs["frame_shape"] = SHAPE
            file["offsets"] = np.concatenate([[0], np.cumsum(counts_NB.sum(axis=1, dtype=np.int64))])
        section = ReplaySource(path=str(tmp_path / "hits.h5"))
        return lambda: build_source(section, SHAPE)


class LiveContract(SourceContract):
    """A live source begins with the present and never ends."""

    finite = False
    goes_back = False


class TestZeroMqRaw(LiveContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> Iterator[SourceFactory]:
        endpoint, counts_NCE = f"ipc://{tmp_path}/raw", example_block(48, frame_shape=SHAPE).counts_NCE
        section = ZeroMqSource(endpoints=(endpoint,))
        with pushing(endpoint, lambda first: encode(counts_NCE, run_number=4, first_pulse_id=first), frames=48):
            yield lambda: build_source(section, SHAPE)


class TestZeroMqLclstreamer(LiveContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> Iterator[SourceFactory]:
        endpoint, counts_NCE = f"ipc://{tmp_path}/hdf5", example_block(48, frame_shape=SHAPE).counts_NCE
        section = ZeroMqSource(endpoints=(endpoint,), dialect="lclstreamer", role="bind")

        def message(first: int) -> list[bytes]:
            id_N = np.arange(first, first + 48, dtype=np.float64)
            return [hdf5_image({"/timestamp": id_N, "/counts": counts_NCE}, "bitshuffle_with_lz4")]

        with pushing(endpoint, message, frames=48, bind=False):
            yield lambda: build_source(section, SHAPE)


class TestPvAccessFrameByFrame(LiveContract):
    @pytest.fixture
    def make_source(self) -> Iterator[SourceFactory]:
        with publishing(example_block(1, frame_shape=SHAPE).counts_NCE[0], every_s=0.001) as (channel, address):
            yield lambda: build_source(PvAccessSource(channel=channel, addresses=(address,)), SHAPE)


class TestPvAccessStacks(LiveContract):
    @pytest.fixture
    def make_source(self) -> Iterator[SourceFactory]:
        with publishing(example_block(48, frame_shape=SHAPE).counts_NCE, every_s=0.005) as (channel, address):
            yield lambda: build_source(PvAccessSource(channel=channel, addresses=(address,)), SHAPE)
