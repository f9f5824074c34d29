from __future__ import annotations

from pathlib import Path

import pytest
import torch

from filmloop.core.documents import ShardRef
from filmloop.testing.training import small_job
from filmloop.training.checkpoint import CHECKPOINT, parse_checkpoint, read_checkpoint, save_checkpoint

CPU = torch.device("cpu")
STATE = {"module": {"w": torch.arange(4.0)}, "progress": {"step": 7}}


def test_a_checkpoint_comes_back(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    save_checkpoint(folder, job, STATE)
    data = read_checkpoint(folder)
    assert data is not None
    state = parse_checkpoint(data, job, CPU)
    assert state is not None
    assert state["progress"] == {"step": 7}
    assert torch.equal(state["module"]["w"], torch.arange(4.0))


def test_no_checkpoint_is_none(folder: Path) -> None:
    assert read_checkpoint(folder) is None


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not one"])
def test_a_damaged_checkpoint_means_a_fresh_start(folder: Path, shard: ShardRef, spoil) -> None:
    job = small_job(folder, shard)
    save_checkpoint(folder, job, STATE)
    assert parse_checkpoint(spoil((folder / CHECKPOINT).read_bytes()), job, CPU) is None


def test_the_checkpoint_of_another_job_is_not_used(folder: Path, shard: ShardRef) -> None:
    save_checkpoint(folder, small_job(folder, shard, seed=1), STATE)
    data = read_checkpoint(folder)
    assert data is not None
    assert parse_checkpoint(data, small_job(folder, shard, seed=2), CPU) is None


class _Touches:
    """Unpickling this would create a file: what a malicious checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(folder: Path, shard: ShardRef) -> None:
    job, trap = small_job(folder, shard), folder / "trap"
    torch.save({"job_digest": job.digest(), "state": _Touches(trap)}, folder / CHECKPOINT)
    assert parse_checkpoint((folder / CHECKPOINT).read_bytes(), job, CPU) is None
    assert not trap.exists()
