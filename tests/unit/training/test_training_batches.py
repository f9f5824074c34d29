"""A batch that is made early is the one that would have come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from filmloop.core.documents import TrainJob
from filmloop.core.errors import DataError
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.batches import Batches, Split, TrainBatch
from filmloop.training.data import TrainingData, load_data
from filmloop.training.plan import BatchPlan

STEPS = 12
SHARE = slice(3, 40)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    shard = staged_frames(tmp_path / "stage", simulated_counts(400))
    return small_job(tmp_path / "run", shard, hyper={"max_steps": STEPS})


@pytest.fixture
def data(job: TrainJob) -> Iterator[TrainingData]:
    data = load_data(job)
    yield data
    data.pool.close()


def _batches(job: TrainJob, data: TrainingData, waits: list[float] | None = None) -> Batches:
    plan = BatchPlan(data.pool.orders, job.hyper, job.seed)
    data.pool.start(plan, 0)
    return Batches(data.pool, plan, SHARE, ([] if waits is None else waits).append)


def _same(left: TrainBatch, right: TrainBatch) -> None:
    assert left.step == right.step
    assert torch.equal(left.frames.counts_NCE, right.frames.counts_NCE)
    assert left.frames.batch.index_N.tolist() == right.frames.batch.index_N.tolist()
    assert left.split is not None
    assert right.split is not None
    assert torch.equal(left.split.kept_NCE, right.split.kept_NCE)
    assert torch.equal(left.split.rest_NCE, right.split.rest_NCE)


def test_batches_made_early_are_those_that_come_without(job: TrainJob, data: TrainingData) -> None:
    waits: list[float] = []
    plain, early = _batches(job, data), _batches(job, data, waits)
    for step in range(STEPS):
        batch = early(step)
        _same(batch, plain(step))
        if step % 3:
            early.make_following()
            assert len(waits) == min(step + 2, STEPS), "it is made at once"
    assert len(waits) == STEPS, "and none twice, or beyond the plan"


def test_both_parts_are_the_frame(job: TrainJob, data: TrainingData) -> None:
    frames = _batches(job, data)(0).frames
    split = Split.of(frames)
    assert torch.equal(split.kept_NCE + split.rest_NCE, frames.counts_NCE.float())
    assert len(split.keep_N11) == 37


def test_a_step_that_is_not_the_next_one_gets_its_own(job: TrainJob, data: TrainingData) -> None:
    plain, early = _batches(job, data), _batches(job, data)
    early(0)
    early.make_following()
    _same(early(5), plain(5))


def test_labelled_frames_are_not_split(tmp_path: Path) -> None:
    counts = simulated_counts(400)
    shard = staged_frames(tmp_path / "stage", counts, label_NCE=counts.astype("float32"))
    job = small_job(tmp_path / "run", shard, hyper={"max_steps": STEPS, "mode": "labelled"})
    data = load_data(job)
    assert _batches(job, data)(0).split is None
    data.pool.close()


def test_what_goes_wrong_early_is_raised_when_that_batch_is_asked_for(
    job: TrainJob, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = _batches(job, data)
    first = batches(0)
    damaged = DataError("shard 3 is damaged")

    def take(*_: object) -> None:
        raise damaged

    with monkeypatch.context() as patch:
        patch.setattr(data.pool, "take", take)
        batches.make_following()
    with pytest.raises(DataError, match="shard 3"):
        batches(1)
    again = _batches(job, data)
    _same(replace(again(0)), first)
