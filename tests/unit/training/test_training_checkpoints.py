from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.errors import TransientError
from filmloop.testing.training import small_job
from filmloop.training.checkpoints.keeper import CHECKPOINTS, Checkpoints
from filmloop.training.checkpoints.outline import outlined, restored
from filmloop.training.checkpoints.sealed import STATE, SUMS
from filmloop.training.ranks import Ranks

PART = "part-0.safetensors"


@pytest.fixture
def job(folder: Path, shard: ShardRef) -> TrainJob:
    return small_job(folder, shard)


def _state(step: int) -> dict[str, Any]:
    return {"module": {"w": torch.arange(4.0)}, "progress": {"step": step, "lowest": float("inf")}}


def _save(folder: Path, job: TrainJob, *steps: int) -> Checkpoints:
    """As a process does that goes on from what is there."""
    checkpoints = Checkpoints(folder, job, Ranks())
    checkpoints.latest()
    for step in steps:
        checkpoints.save(_state(step))
    checkpoints.finish()
    return checkpoints


def _step(folder: Path, job: TrainJob) -> int | None:
    state = Checkpoints(folder, job, Ranks()).latest()
    return None if state is None else state["progress"]["step"]


def _newest(folder: Path) -> Path:
    return max((folder / CHECKPOINTS).iterdir())


def test_a_checkpoint_comes_back(folder: Path, job: TrainJob) -> None:
    _save(folder, job, 7)
    state = Checkpoints(folder, job, Ranks()).latest()
    assert state is not None
    assert state["progress"] == {"step": 7, "lowest": float("inf")}
    assert torch.equal(state["module"]["w"], torch.arange(4.0))


def test_what_an_optimiser_and_the_progress_hold_comes_back_as_it_was(folder: Path, job: TrainJob) -> None:
    module = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    given = {
        "optimiser": optimiser.state_dict(),
        "scores": torch.tensor([0.1, float("nan")], dtype=torch.float64),
        "nothing": {"none": None, "empty": {}, "list": [], "no": torch.empty(0), "number": torch.tensor(7)},
        "numbers": [1, 0.1, float("-inf"), True, "text"],
    }
    checkpoints = Checkpoints(folder, job, Ranks())
    checkpoints.save(given)
    checkpoints.finish()
    found = Checkpoints(folder, job, Ranks()).latest()
    assert found is not None
    (outline, tensors), (wanted, wanted_tensors) = outlined(found), outlined(given)
    assert outline == wanted
    assert tensors.keys() == wanted_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, wanted_tensors[name], rtol=0, atol=0, equal_nan=True)
    optimiser.load_state_dict(found["optimiser"])


def test_an_outline_refuses_what_no_checkpoint_holds() -> None:
    with pytest.raises(TypeError, match=r"state/a/1 is a Path|state/a/1 is a PosixPath"):
        outlined({"a": [0, Path("x")]})
    outline, tensors = outlined({"a": torch.ones(2), 3: [torch.zeros(1)]})
    assert restored(json.loads(json.dumps(outline)), tensors) == {"a": tensors["state/a"], 3: [tensors["state/3/0"]]}


def test_no_checkpoint_is_none(folder: Path, job: TrainJob) -> None:
    assert _step(folder, job) is None


def test_what_lies_there_can_be_read_and_checked_without_this_project(folder: Path, job: TrainJob) -> None:
    _save(folder, job, 7)
    assert subprocess.run(["sha256sum", "-c", SUMS], cwd=_newest(folder), capture_output=True, check=True).stdout
    assert load_file(_newest(folder) / PART)["state/module/w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert json.loads((_newest(folder) / STATE).read_text())["job_digest"] == job.digest()


def _one_bit(data: bytes) -> bytes:
    """Of what may be a weight: the file is as long as before, and can be read."""
    return data[:-1] + bytes([data[-1] ^ 0x04])


SPOIL: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: data[:10],
    lambda data: b"",
    lambda data: b"not one",
    _one_bit,
]


@pytest.mark.parametrize("name", [PART, STATE, SUMS])
@pytest.mark.parametrize("spoil", SPOIL)
def test_a_damaged_checkpoint_means_the_one_before_it(
    folder: Path, job: TrainJob, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    _save(folder, job, 7, 8, 9)
    assert _step(folder, job) == 9
    for step in (8, None):
        file = _newest(folder) / name
        file.write_bytes(spoil(file.read_bytes()))
        assert _step(folder, job) == step


@pytest.mark.parametrize("name", [PART, STATE, SUMS])
def test_a_checkpoint_that_lacks_a_file_means_the_one_before_it(folder: Path, job: TrainJob, name: str) -> None:
    _save(folder, job, 7, 8)
    (_newest(folder) / name).unlink()
    assert _step(folder, job) == 7


@pytest.mark.parametrize("name", [PART, STATE, SUMS])
def test_no_changed_byte_of_a_checkpoint_goes_unnoticed(folder: Path, job: TrainJob, name: str) -> None:
    rng = np.random.default_rng(0)
    _save(folder, job, 7)
    data = np.frombuffer((_newest(folder) / name).read_bytes(), np.uint8)
    for at in rng.integers(0, len(data), 100):
        changed = data.copy()
        changed[at] ^= 1 << rng.integers(8)
        (_newest(folder) / name).write_bytes(changed.tobytes())
        assert _step(folder, job) is None
        _save(folder, job, 7)


def test_two_are_kept(folder: Path, job: TrainJob) -> None:
    _save(folder, job, *range(1, 8))
    assert sorted(path.name for path in (folder / CHECKPOINTS).iterdir()) == ["000006", "000007"]


def test_the_checkpoint_that_was_gone_on_from_is_kept_beside_the_next_one(folder: Path, job: TrainJob) -> None:
    _save(folder, job, 7, 8)
    (_newest(folder) / PART).write_bytes(b"not one")
    assert _step(folder, job) == 7
    _save(folder, job, 9)
    assert _step(folder, job) == 9
    (_newest(folder) / PART).write_bytes(b"not one either")
    assert _step(folder, job) == 7


def test_what_killed_ranks_left_half_done_is_removed(folder: Path, job: TrainJob) -> None:
    _save(folder, job, 7)
    left = folder / CHECKPOINTS / "000002"
    left.mkdir()
    (left / "part-0.safetensors.12345.part").write_bytes(b"half a par")
    (left / "part-1.safetensors").write_bytes(b"a part")
    assert _step(folder, job) == 7
    assert not left.exists()


def test_the_checkpoint_of_another_job_is_not_used(folder: Path, shard: ShardRef) -> None:
    _save(folder, small_job(folder, shard, seed=1), 7)
    assert _step(folder, small_job(folder, shard, seed=2)) is None


def test_what_is_written_is_the_state_as_it_was_when_it_was_given(folder: Path, job: TrainJob) -> None:
    checkpoints, weights = Checkpoints(folder, job, Ranks()), torch.zeros(4)
    for step in range(1, 21):
        weights.fill_(step)
        checkpoints.save({"w": weights, "progress": {"step": step}})
        weights.fill_(-1.0)
    checkpoints.finish()
    state = Checkpoints(folder, job, Ranks()).latest()
    assert state is not None
    assert (state["progress"]["step"], state["w"].tolist()) == (20, [20.0] * 4)


def test_a_disk_that_refuses_is_told_at_the_next_save_and_the_one_before_is_intact(folder: Path, job: TrainJob) -> None:
    checkpoints = _save(folder, job, 7)
    for number in ("000002", "000003"):
        (folder / CHECKPOINTS / number).touch()  # no folder can be made there
    checkpoints.save(_state(8))
    checkpoints.close()
    with pytest.raises(TransientError, match="000002"):
        checkpoints.save(_state(9))
    checkpoints.save(_state(10))
    with pytest.raises(TransientError, match="000003"):
        checkpoints.finish()
    assert _step(folder, job) == 7


def test_nothing_in_a_checkpoint_is_a_pickle(folder: Path, job: TrainJob) -> None:
    _save(folder, job, 7)
    # Protocols 2 and later begin with 0x80, and those of torch.save with the PK of a zip file.
    starts = {
        path.name: path.read_bytes()[8:9] if path.name == PART else path.read_bytes()[:1]
        for path in _newest(folder).iterdir()
    }
    assert starts.keys() == {PART, STATE, SUMS}
    assert starts[PART] == starts[STATE] == b"{"  # behind the length of its header, the one of safetensors is JSON too
