"""How fast training is: one process and two, what its step is made of, and whether it ever waits for frames.

- One process and two: the training loop of a job under torchrun, without evaluation and bundle, on a shard with 32,000 frames to train on
  (the published job: 32,000 frames, 50 epochs, 4 GPUs; github.com/lzhengchun/nnTrainFlow), batches of 256 whatever the number of processes.
- Apart: two trainings at the same time that know nothing of each other, on half batches; what two cores of this machine can give, which
  may be less than twice one.
- `loader`: batches of frames without training, beside `torch.utils.data.DataLoader` over the same shard.
- `step_ms`: the parts of a step of one process.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from filmloop.bundle import METRICS
from filmloop.core.documents import ModelChoice, ShardRef, TrainJob
from filmloop.core.errors import TrainingError
from filmloop.staging.reader import ShardReader
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.data import load_data
from filmloop.training.entry import leave
from filmloop.training.load import build_module
from filmloop.training.plan import BatchPlan
from filmloop.training.pool import Frames
from filmloop.training.ranks import joined_ranks
from filmloop.training.thinning import thin
from filmloop.training.trainer import thinned_loss, train

EPOCH_FRAMES = 32_000
BATCH_FRAMES = 256
_HELD_PERMILLE = 100
_WARM_LINES = 3
"""Lines of metrics, ten steps each, before the first that counts."""
_STREAM_MB = 32.0


def measure(model: str, rounds: int, steps: int, seconds: float, folder: Path, *, frames: int) -> dict[str, Any]:
    """Train `rounds` times with each number of processes, taking turns.

    Args:
        model: Catalog name.
        rounds: How often.
        steps: Of each.
        seconds: For each figure of the loader.
        folder: Where to work.
        frames: Frames to train on, about; `EPOCH_FRAMES` for figures that are to be quoted.

    Returns:
        `speedup_2` (frames a second of two processes over those of one), `speedup_apart` (the same of two that know nothing
        of each other), `together_to_apart`, `frames_per_s`, `epoch_s` (32,000 frames) and
        `loader_idle_share` by number of processes, `loader`, `step_ms`, and what was trained.
    """
    staged = frames * 1000 // (1000 - _HELD_PERMILLE)
    shard = staged_frames(folder / "stage", simulated_counts(staged))
    rates: dict[int, list[float]] = {1: [], 2: []}
    idle: dict[int, list[float]] = {1: [], 2: []}
    apart: list[float] = []
    for number in range(rounds):
        for processes in (1, 2) if number % 2 == 0 else (2, 1):
            job = _job(folder / f"run{number}-{processes}", shard, model, steps=steps)
            _run(job, processes)
            lines = _loss_lines(Path(job.output_dir) / METRICS)
            rates[processes].append(statistics.median(line["frames_per_s"] for line in lines))
            idle[processes].append(statistics.fmean(line["loader_idle_share"] for line in lines))
        apart.append(_apart(folder / f"run{number}-apart", shard, model, steps))
    rate = {processes: statistics.median(values) for processes, values in rates.items()}
    step_ms = _step_ms(_job(folder / "step", shard, model, steps=steps), seconds)
    half_ms = _step_ms(_job(folder / "half", shard, model, steps=steps), seconds, BATCH_FRAMES // 2)
    return {
        "speedup_2": round(rate[2] / rate[1], 3),
        "speedup_2_rounds": [round(two / one, 3) for one, two in zip(rates[1], rates[2], strict=True)],
        "speedup_apart": round(statistics.median(apart) / rate[1], 3),
        "speedup_apart_rounds": [round(two / one, 3) for one, two in zip(rates[1], apart, strict=True)],
        "together_to_apart": round(rate[2] / statistics.median(apart), 3),
        "frames_per_s": {str(processes): round(value) for processes, value in rate.items()},
        "epoch_s": {str(processes): round(EPOCH_FRAMES / value, 3) for processes, value in rate.items()},
        "loader_idle_share": {
            str(processes): round(statistics.median(values), 5) for processes, values in idle.items()
        },
        "loader": _loader(folder, shard, model, steps, seconds),
        "step_ms": step_ms,
        # What is left of a step of two processes: the all-reduce, waiting for each other, shared caches.
        "together_ms": round(1e3 * BATCH_FRAMES / rate[2] - half_ms["all"], 2),
        "model": model,
        "batch_frames": BATCH_FRAMES,
        "steps": steps,
        "rounds": rounds,
        "epoch_frames": EPOCH_FRAMES,
        "frames_trained": load_data(_job(folder / "count", shard, model, steps=steps)).frames,
    }


def _apart(folder: Path, shard: ShardRef, model: str, steps: int) -> float:
    """Frames a second of both of two trainings at the same time, in one process each."""
    jobs = [_job(folder / str(number), shard, model, steps=steps, batch_frames=BATCH_FRAMES // 2) for number in (0, 1)]
    with ThreadPoolExecutor(len(jobs)) as beside:
        list(beside.map(lambda job: _run(job, 1), jobs))
    lines = [_loss_lines(Path(job.output_dir) / METRICS) for job in jobs]
    return sum(statistics.median(line["frames_per_s"] for line in of_job) for of_job in lines)


def _job(
    folder: Path,
    shard: ShardRef,
    model: str,
    *,
    steps: int,
    loader_mb: float = 2048.0,
    batch_frames: int = BATCH_FRAMES,
) -> TrainJob:
    hyper = {"max_steps": steps, "max_epochs": 10**6, "batch_frames": batch_frames, "train_s": 1e6}
    hyper |= {"evaluate_every_steps": 10**6, "loader_mb": loader_mb, "checkpoint_every_s": 15.0}
    job = small_job(folder, shard, hyper=hyper, holdout={"permille": _HELD_PERMILLE}, deadline_s=1e6)
    return job.model_copy(update={"model": ModelChoice(name=model, frame_shape=job.model.frame_shape)})


def _run(job: TrainJob, processes: int) -> None:
    folder = Path(job.output_dir)
    job.write(folder / "job.json")
    command = [sys.executable, "-m", "filmloop.training.torchrun", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "-m", "filmloop.bench.train", str(folder / "job.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise TrainingError(f"The job of the benchmark failed:\n{done.stderr[-2000:]}", hint="Is the machine full?")


def _loss_lines(metrics: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    return lines[_WARM_LINES:] or lines[-1:]


def _loader(folder: Path, shard: ShardRef, model: str, steps: int, seconds: float) -> dict[str, Any]:
    """Frames a second of batches alone, each in one process: ours from memory and streamed, and torch's DataLoader."""
    reader = ShardReader(Path(shard.manifest_path))
    counts = torch.from_numpy(reader.counts())
    in_memory = DataLoader(TensorDataset(counts), batch_size=BATCH_FRAMES, shuffle=True)
    singles = DataLoader(_SingleFrames(reader), batch_size=BATCH_FRAMES, shuffle=True)
    rates = {
        "memory": _batches_per_s(lambda: _our_batches(_job(folder, shard, model, steps=steps)), seconds),
        "streamed": _batches_per_s(
            lambda: _our_batches(_job(folder, shard, model, steps=steps, loader_mb=_STREAM_MB)), seconds
        ),
        "dataloader_memory": _batches_per_s(lambda: iter(in_memory), seconds),
        "dataloader_random_frames": _batches_per_s(lambda: iter(singles), seconds),
    }
    return {
        "frames_per_s": {name: round(rate) for name, rate in rates.items()},
        "to_dataloader_memory": round(rates["memory"] / rates["dataloader_memory"], 2),
        "streamed_to_random_frames": round(rates["streamed"] / rates["dataloader_random_frames"], 1),
        "streamed_mb": _STREAM_MB,
    }


class _SingleFrames(Dataset[torch.Tensor]):
    """Frames of a shard one at a time, as a first attempt would have them."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return self._reader.frames

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._reader.counts(index, index + 1)[0])


def _our_batches(job: TrainJob) -> Iterator[Frames]:
    data = load_data(job)
    plan = BatchPlan(data.pool.orders, job.hyper, job.seed)
    data.pool.start(plan, 0)
    try:
        for step in range(10**9):
            yield data.pool.take(plan, step, slice(0, BATCH_FRAMES))
    finally:
        data.pool.close()


def _batches_per_s(make: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Frames a second, opening and hashing the shard not counted."""
    batches = make()
    next(batches)
    done, begun_s = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - begun_s < seconds:
        try:
            next(batches)
        except StopIteration:
            batches = make()
            continue
        done += BATCH_FRAMES
    return done / (time.perf_counter() - begun_s)


def _step_ms(job: TrainJob, seconds: float, size: int = BATCH_FRAMES) -> dict[str, float]:
    """Median milliseconds of the parts of a step on `size` frames, one thread, one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module, batches = build_module(job.model), _our_batches(job)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-6, fused=True)
    parts: dict[str, list[float]] = {name: [] for name in ("frames", "thinning", "forward", "backward", "optimiser")}
    begun_s = time.perf_counter()
    try:
        while len(parts["frames"]) < 5 or time.perf_counter() - begun_s < seconds:
            at_s = [time.perf_counter()]
            frames = next(batches)
            counts_NCE, keep_N = frames.counts_NCE[:size], torch.from_numpy(frames.batch.keep_N[:size])
            at_s.append(time.perf_counter())
            kept_NCE, rest_NCE = thin(counts_NCE, keep_N, torch.from_numpy(frames.batch.draw_N[:size]))
            at_s.append(time.perf_counter())
            keep_N11 = keep_N[:, None, None]
            loss = thinned_loss(module(kept_NCE / keep_N11), rest_NCE, keep_N11).sum()
            at_s.append(time.perf_counter())
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            at_s.append(time.perf_counter())
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            at_s.append(time.perf_counter())
            for name, begin, end in zip(parts, at_s, at_s[1:], strict=False):
                parts[name].append(end - begin)
    finally:
        batches.close()  # type: ignore[attr-defined]
        torch.set_num_threads(threads)
    figures = {name: round(1e3 * statistics.median(values), 2) for name, values in parts.items()}
    return {**figures, "all": round(sum(figures.values()), 2)}


def _train(job: TrainJob) -> None:
    """One rank of a job, without evaluation and bundle."""
    with joined_ranks() as ranks:
        torch.manual_seed(job.seed)
        data = load_data(job, ranks.device)
        train(job, build_module(job.model), data, ranks, folder=Path(job.output_dir), told_to_stop=lambda: False)


if __name__ == "__main__":
    _train(TrainJob.read(Path(sys.argv[1])))
    leave(0)
