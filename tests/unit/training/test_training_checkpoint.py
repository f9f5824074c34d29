from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.errors import TransientError
from filmloop.testing.training import small_job
from filmloop.training.checkpoint import (
    CHECKPOINT,
    EARLIER,
    CheckpointWriter,
    parse_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

CPU = torch.device("cpu")
STATE = {"module": {"w": torch.arange(4.0)}, "progress": {"step": 7}}


def test_a_checkpoint_comes_back(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    save_checkpoint(folder, job, STATE)
    data = read_checkpoint(folder, job)
    assert data is not None
    state = parse_checkpoint(data, job, CPU)
    assert state is not None
    assert state["progress"] == {"step": 7}
    assert torch.equal(state["module"]["w"], torch.arange(4.0))


def test_no_checkpoint_is_none(folder: Path, shard: ShardRef) -> None:
    assert read_checkpoint(folder, small_job(folder, shard)) is None


def _one_bit_of_a_weight(data: bytes) -> bytes:
    """Turns the last of the weights, 3.0, into another number; the file is as long as before and can be unpickled."""
    at = data.index(torch.arange(4.0).numpy().tobytes()) + 15
    return data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :]


def _without_its_digest(data: bytes) -> bytes:
    """What torch itself would have written."""
    return data[data.index(b"PK\x03\x04") :]


SPOIL = [
    lambda data: data[: len(data) // 2],
    lambda data: data[:10],
    lambda data: b"",
    lambda data: b"not one",
    _one_bit_of_a_weight,
    _without_its_digest,
]


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_damaged_checkpoint_means_the_one_before_it(folder: Path, shard: ShardRef, spoil) -> None:
    job = small_job(folder, shard)
    for step in (7, 8, 9):
        save_checkpoint(folder, job, STATE | {"progress": {"step": step}})
    assert _step(folder, job) == 9
    (folder / CHECKPOINT).write_bytes(spoil((folder / CHECKPOINT).read_bytes()))
    assert _step(folder, job) == 8
    (folder / EARLIER).write_bytes(spoil((folder / EARLIER).read_bytes()))
    assert read_checkpoint(folder, job) is None


def test_no_changed_byte_of_a_checkpoint_goes_unnoticed(folder: Path, shard: ShardRef) -> None:
    job, rng = small_job(folder, shard), np.random.default_rng(0)
    save_checkpoint(folder, job, STATE)
    data = np.frombuffer((folder / CHECKPOINT).read_bytes(), np.uint8)
    for at in rng.integers(0, len(data), 300):
        changed = data.copy()
        changed[at] ^= 1 << rng.integers(8)
        assert parse_checkpoint(changed.tobytes(), job, CPU) is None


def test_the_checkpoint_that_was_gone_on_from_is_kept_beside_the_next_one(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    for step in (7, 8):
        save_checkpoint(folder, job, {"progress": {"step": step}})
    (folder / CHECKPOINT).write_bytes(b"not one")
    assert _step(folder, job) == 7
    save_checkpoint(folder, job, {"progress": {"step": 9}})
    (folder / CHECKPOINT).write_bytes(b"not one either")
    assert _step(folder, job) == 7


def test_what_a_killed_writer_left_half_done_is_removed(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    save_checkpoint(folder, job, STATE)
    left = folder / f"{CHECKPOINT}.12345.part"
    left.write_bytes(b"half a checkp")
    assert _step(folder, job) == 7
    assert not left.exists()


def test_the_earlier_checkpoint_is_used_where_the_newest_is_gone(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    save_checkpoint(folder, job, STATE)
    (folder / CHECKPOINT).rename(folder / EARLIER)
    assert _step(folder, job) == 7


def _step(folder: Path, job: TrainJob) -> int:
    data = read_checkpoint(folder, job)
    assert data is not None
    state = parse_checkpoint(data, job, CPU)
    assert state is not None
    return state["progress"]["step"]


def test_the_checkpoint_of_another_job_is_not_used(folder: Path, shard: ShardRef) -> None:
    save_checkpoint(folder, small_job(folder, shard, seed=1), STATE)
    assert read_checkpoint(folder, small_job(folder, shard, seed=2)) is None


def test_what_is_written_is_the_state_as_it_was_when_it_was_given(folder: Path, shard: ShardRef) -> None:
    job, writer, weights = small_job(folder, shard), CheckpointWriter(folder, small_job(folder, shard)), torch.zeros(4)
    for step in range(1, 51):
        weights.fill_(step)
        writer.save({"w": weights, "progress": {"step": step}})
        weights.fill_(-1.0)
    writer.finish()
    data = read_checkpoint(folder, job)
    assert data is not None
    state = parse_checkpoint(data, job, CPU)
    assert state is not None
    assert state["progress"]["step"] == 50
    assert state["w"].tolist() == [50.0] * 4


def test_a_disk_that_refuses_is_told_at_the_next_save(tmp_path: Path, shard: ShardRef) -> None:
    (tmp_path / "no folder").touch()
    writer = CheckpointWriter(tmp_path / "no folder", small_job(tmp_path, shard))
    writer.save(STATE)
    writer.close()
    with pytest.raises(TransientError):
        writer.save(STATE)
    writer.save(STATE)
    with pytest.raises(TransientError):
        writer.finish()


class _Touches:
    """Unpickling this would create a file: what a malicious checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(folder: Path, shard: ShardRef) -> None:
    job, trap = small_job(folder, shard), folder / "trap"
    save_checkpoint(folder, job, {"trap": _Touches(trap)})
    assert parse_checkpoint((folder / CHECKPOINT).read_bytes(), job, CPU) is None
    assert not trap.exists()
