"""Real ranks write checkpoints together while they exchange messages of their own, and other numbers of ranks read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from filmloop.core.documents import ShardRef, TrainJob
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.checkpoints.keeper import CHECKPOINTS, Checkpoints
from filmloop.training.checkpoints.sealed import STATE, SUMS
from filmloop.training.ranks import Ranks

_BEGINNING = """
import json, os, pathlib, resource, signal, sys, time, torch
import torch.distributed as dist
from filmloop.core.documents import TrainJob
from filmloop.core.errors import TransientError
from filmloop.training.checkpoints import storage
from filmloop.training.checkpoints.keeper import Checkpoints
from filmloop.training.ranks import joined_ranks

folder = pathlib.Path(sys.argv[1])
job = TrainJob.read(folder / "job.json")

def state(step):
    tensors = {f"layer {n}": torch.full((n + 1, 50), float(step + n)) for n in range(6)}
    return {"module": tensors, "progress": {"step": step}}

def tell(found):
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))
"""

_WRITE = """
with joined_ranks() as ranks:
    checkpoints, total = Checkpoints(folder, job, ranks), torch.zeros(1)
    assert checkpoints.latest() is None
    for step in range(1, 21):
        checkpoints.save(state(step))
        for _ in range(20):  # what the training does meanwhile
            dist.all_reduce(total.fill_(1.0))
            assert total.item() == ranks.world
    checkpoints.finish()
    tell({})
"""

_READ = """
with joined_ranks() as ranks:
    found = Checkpoints(folder, job, ranks).latest()
    wanted = state(20)["module"]
    same = found["module"].keys() == wanted.keys() and all(map(torch.equal, found["module"].values(), wanted.values()))
    tell({"step": found["progress"]["step"], "same": same})
"""

_REFUSED = """
with joined_ranks() as ranks:
    checkpoints, said = Checkpoints(folder, job, ranks), []
    checkpoints.save(state(1))
    checkpoints.finish()
    if ranks.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # its disk is full
    checkpoints.save(state(2))
    try:
        checkpoints.finish()
    except TransientError as exc:
        said.append(exc.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    steps = [checkpoints.latest()["progress"]["step"]]
    checkpoints.save(state(3))
    checkpoints.finish()
    tell({"said": said, "steps": [*steps, checkpoints.latest()["progress"]["step"]]})
"""

_KILLED = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends who is left, and this one has something to tell
with joined_ranks() as ranks:
    checkpoints = Checkpoints(folder, job, ranks)
    checkpoints.save(state(1))
    checkpoints.finish()
    if ranks.rank == 1:
        storage.atomic_write_bytes = lambda path, data: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save(state(2))
    begun_s, said = time.monotonic(), ""
    checkpoints.close()
    try:
        checkpoints.finish()
    except Exception as exc:
        said = str(exc)
    tell({"said": said, "after_s": time.monotonic() - begun_s})
    os._exit(0)  # Nobody is left to part from.
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardRef:
    return staged_frames(tmp_path_factory.mktemp("stage"), simulated_counts(10))


@pytest.fixture
def job(tmp_path: Path, shard: ShardRef) -> TrainJob:
    job = small_job(tmp_path, shard)
    job.write(tmp_path / "job.json")
    return job


def _ranks(folder: Path, script: str, ranks: int = 2, *, wanted: bool = True) -> list[dict[str, Any]]:
    """Run it under torchrun; what each rank found."""
    (folder / "ranks.py").write_text(_BEGINNING + script)
    for old in folder.glob("[0-9].json"):
        old.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(folder / "ranks.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode == 0) == wanted, done.stderr[:3000] + done.stderr[-1000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9].json"))]


def test_every_rank_writes_a_part_and_any_number_of_ranks_reads_them(tmp_path: Path, job: TrainJob) -> None:
    _ranks(tmp_path, _WRITE)
    newest = tmp_path / CHECKPOINTS / "000020"
    assert {path.name for path in newest.iterdir()} == {"part-0.safetensors", "part-1.safetensors", STATE, SUMS}
    parts = [load_file(newest / f"part-{rank}.safetensors").keys() for rank in range(2)]
    assert not parts[0] & parts[1], "each tensor is written once"
    assert len(parts[0] | parts[1]) == 6
    assert min(map(len, parts)) > 0, "and each rank has its share"
    for ranks in (2, 3):
        assert _ranks(tmp_path, _READ, ranks) == [{"step": 20, "same": True}] * ranks
    alone = Checkpoints(tmp_path, job, Ranks()).latest()
    assert alone is not None
    assert alone["progress"]["step"] == 20
    assert [tensor[0, 0].item() for tensor in alone["module"].values()] == [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]


def test_more_ranks_than_tensors_is_no_trouble(tmp_path: Path, job: TrainJob) -> None:
    _ranks(tmp_path, _WRITE.replace("state(step)", "{'w': torch.ones(3), 'progress': {'step': step}}"), 3)
    alone = Checkpoints(tmp_path, job, Ranks()).latest()
    assert alone is not None
    assert (alone["progress"]["step"], alone["w"].tolist()) == (20, [1.0] * 3)


def test_a_disk_that_refuses_one_rank_is_told_by_all_and_the_checkpoint_before_is_intact(
    tmp_path: Path, job: TrainJob
) -> None:
    for told in _ranks(tmp_path, _REFUSED):
        assert told["steps"] == [1, 3]
        (said,) = told["said"]
        assert "part-1.safetensors" in said
        assert "File too large" in said


def test_a_rank_that_is_killed_while_it_writes_is_noticed_at_once_and_the_checkpoint_before_is_intact(
    tmp_path: Path, job: TrainJob
) -> None:
    (told,) = _ranks(tmp_path, _KILLED, wanted=False)
    assert "Connection" in told["said"]
    assert told["after_s"] < 15, "not the time that ranks have for each other"
    alone = Checkpoints(tmp_path, job, Ranks()).latest()
    assert alone is not None
    assert alone["progress"]["step"] == 1
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["000001"]
