from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from filmloop.core.documents import TrainHyper, TrainJob
from filmloop.core.errors import DataError
from filmloop.testing.training import small_job, staged_frames
from filmloop.training import pool as pool_module
from filmloop.training.data import TrainingData, load_data
from filmloop.training.plan import BatchPlan

SHAPE = (2, 8)
FRAME_MB = 16e-6


@pytest.fixture(autouse=True)
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First frame of every block that a loader decodes, in order; the real decoder does it."""
    calls: list[int] = []
    decode = pool_module.decode

    def counted(block, *, labelled):
        calls.append(block.start)
        return decode(block, labelled=labelled)

    monkeypatch.setattr(pool_module, "decode", counted)
    monkeypatch.setattr("filmloop.training.blocks.BLOCK_FRAMES", 16)
    monkeypatch.setattr("filmloop.testing.training.write_shard", _in_small_chunks)
    return calls


def _in_small_chunks(stage, block, *, seq, frames_per_chunk):
    from filmloop.testing.shards import write_shard

    return write_shard(stage, block, seq=seq, frames_per_chunk=16)


def _numbered(frames: int) -> np.ndarray:
    counts = np.zeros((frames, *SHAPE), np.uint8)
    counts[:, 0, 0], counts[:, 0, 1], counts[:, 1, 0] = np.arange(frames) % 256, np.arange(frames) // 256, 1
    return counts


def _ids(counts: torch.Tensor) -> list[int]:
    return (counts[:, 0, 0].int() + 256 * counts[:, 0, 1].int()).tolist()


def _job(folder: Path, loader_mb: float, frames: int = 600, **hyper: float) -> TrainJob:
    shard = staged_frames(folder, _numbered(frames))
    return small_job(
        folder / "run", shard, frame_shape=SHAPE, hyper={"batch_frames": 50, "loader_mb": loader_mb, **hyper}
    )


def _walk(data: TrainingData, job: TrainJob, steps: range, share: slice = slice(0, 50)) -> Iterator[list[int]]:
    plan = BatchPlan(data.pool.orders, job.hyper, job.seed)
    data.pool.start(plan, steps.start)
    try:
        for step in steps:
            yield _ids(data.pool.take(plan, step, share).counts_NCE)
    finally:
        data.pool.close()


@pytest.mark.parametrize("loader_mb", [1.0, 200 * FRAME_MB, 1e-6])
def test_every_frame_comes_once_an_epoch_whatever_fits_into_memory(tmp_path: Path, loader_mb: float) -> None:
    job = _job(tmp_path, loader_mb)
    data = load_data(job)
    walked = [number for batch in _walk(data, job, range(60)) for number in batch]
    epochs, rest = divmod(len(walked), data.frames)
    assert epochs >= 5
    for epoch in range(epochs):
        assert len(set(walked[epoch * data.frames : (epoch + 1) * data.frames])) == data.frames
    assert len(set(walked[-rest:])) == rest


def test_what_fits_is_decoded_once_and_what_does_not_once_an_epoch(tmp_path: Path, decoded: list[int]) -> None:
    job = _job(tmp_path, 1.0)
    data = load_data(job)
    assert data.pool.stays
    list(_walk(data, job, range(60)))
    assert len(decoded) == len(set(decoded)) < 38, "the loader decodes what nobody had decoded before"
    decoded.clear()

    job = _job(tmp_path / "large", 200 * FRAME_MB)
    data = load_data(job)
    assert not data.pool.stays
    steps = 5 * data.frames // 50
    list(_walk(data, job, range(steps)))
    assert 5 * 38 - 20 <= len(decoded) <= 5 * 38 + 20, "600 frames are 38 blocks; two windows of memory are read ahead"


def test_memory_is_bounded(tmp_path: Path) -> None:
    frames, limit = 6000, 600
    data = load_data(_job(tmp_path, limit * FRAME_MB, frames))
    assert data.pool.memory_bytes <= limit * 16
    assert data.pool.memory_bytes > limit * 16 * 0.5


@pytest.mark.parametrize("loader_mb", [1.0, 200 * FRAME_MB])
def test_ranks_share_each_batch_without_overlap(tmp_path: Path, loader_mb: float) -> None:
    job = _job(tmp_path, loader_mb)
    whole = list(_walk(load_data(job), job, range(30)))
    for world in (2, 3):
        shares = [slice(rank * 50 // world, (rank + 1) * 50 // world) for rank in range(world)]
        parts = [list(_walk(load_data(job), job, range(30), share)) for share in shares]
        assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("loader_mb", [1.0, 200 * FRAME_MB])
def test_a_restart_goes_on_with_the_same_batches(tmp_path: Path, loader_mb: float) -> None:
    job = _job(tmp_path, loader_mb)
    whole = list(_walk(load_data(job), job, range(40)))
    assert list(_walk(load_data(job), job, range(23, 40))) == whole[23:]


def test_a_block_is_decoded_while_the_one_before_it_is_trained_on(tmp_path: Path, decoded: list[int]) -> None:
    job = _job(tmp_path, 200 * FRAME_MB)
    data = load_data(job)
    walk = _walk(data, job, range(60))
    next(walk)
    end_s = time.monotonic() + 60
    while len(decoded) < 10:  # five blocks are a window here; the first one is all that a step needed
        assert time.monotonic() < end_s, f"{len(decoded)} blocks were decoded and nobody goes on"
        time.sleep(0.01)
    walk.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "filmloop-loader"]


def test_damage_that_the_loader_meets_reaches_the_step(tmp_path: Path) -> None:
    job = _job(tmp_path, 200 * FRAME_MB)
    data = load_data(job)
    for file in tmp_path.rglob("*.zarr/counts/c/**/*"):
        if file.is_file():
            file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(DataError, match="counts"):
        list(_walk(data, job, range(60)))


def test_a_frame_has_a_name(tmp_path: Path) -> None:
    job = _job(tmp_path, 1.0)
    data = load_data(job)
    plan = BatchPlan(data.pool.orders, job.hyper, job.seed)
    data.pool.start(plan, 0)
    frames = data.pool.take(plan, 0, slice(10, 20))
    data.pool.close()
    names = [data.pool.name(int(index)) for index in frames.batch.index_N]
    assert names == [f"shard {job.fresh[0].shard_id}, run 1, pulse {number}" for number in _ids(frames.counts_NCE)]


def test_hyper_defaults_stream_nothing_that_a_usual_job_has() -> None:
    assert TrainHyper().loader_mb * 1e6 > 80_000 * 2048
