"""How many steps the right ancestor saves, and what a return costs: beside scratch that was given all it needs.

For each seed the beam goes through five conditions and back to the first. At every new one a version is trained as a
cycle does it: from the ancestor that the zoo finds, on fresh frames and the replay of those before. At the second one
(half the gain, one and a half times the line width) a network from scratch learns the same frames beside it until it has converged.

Steps to a score: a learning rate that comes down over a plan of steps reaches its score at the plan's end, so plans of
several lengths are tried and the fewest steps count, for scratch and for the warm start alike.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from filmloop.bundle import METRICS
from filmloop.config.schema import GatePolicy, TrainingSection, ZooSection
from filmloop.core.documents import EvaluationReport, HoldoutPolicy, ModelChoice, ShardRef, TrainHyper, TrainJob
from filmloop.testing.training import simulated_counts, staged_frames
from filmloop.training.data import load_data
from filmloop.training.evaluate import evaluate, rate_function
from filmloop.training.load import build_module
from filmloop.training.ranks import joined_ranks
from filmloop.training.trainer import train
from filmloop.zoo.frames import NewestFrames, pick_held_out
from filmloop.zoo.recall import Animal, Recall, decide

CONDITIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("first", {}),
    ("gain and width", {"gain": 0.5, "line_width_bin": 3.0}),
    ("photon energy", {"photon_energy_bin": 54.0}),
    ("streaking", {"kick_bin": 22.0, "polarisation": 0.5}),
    ("intensity", {"intensity": 2.0, "pulses_mean": 4.0}),
)
TARGET_MARGIN = 0.005
"""The score to be reached: that of converged scratch plus so much of it. A network is 4 to 5 % ahead of a Gaussian."""
MARGINS = (0.001, 0.0025, TARGET_MARGIN, 0.01)
"""The closer the target, the smaller the ratio: all of these are reported."""
FORGETTING_MARGIN = 0.005
"""After five conditions and the way back, the champion is at most so much worse on the first one than at its own time."""
_MODEL = ModelChoice(name="mixer", frame_shape=(16, 128))
_HOLDOUT = HoldoutPolicy(permille=200)
_BATCH_FRAMES = 128
_CHAIN_SHARE = 10  # the first version has converged as scratch has; each one after it gets 1/10 of the steps
_SHORTEST_WARM = 10
_LOOKS = 20  # at the hold-out, a plan
# Student's t for a two-sided 95 % interval by degrees of freedom, 1 to 30; beyond, that of 30 is too wide by 4 % at most.
_T95 = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Weights = dict[str, Tensor]


def measure(seeds: int, steps: int, frames: int, folder: Path) -> dict[str, Any]:
    """Train all of it, one process a seed, as many at a time as there are cores.

    Args:
        seeds: Of frames, weights and batches.
        steps: Of the longest plan from scratch.
        frames: Of each condition, a fifth of them held out.
        folder: For shards and metrics; 100 MB a seed.

    Returns:
        `steps_ratio` (geometric mean over seeds, with `steps_ratio_low` and `_high`, its 95 % interval by Student's t;
        None where a score was not reached), `scratch`, `warm`, `returning`, `forgetting`, `per_seed`.
    """
    begun_s = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(min(cores, seeds), mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(one_seed, seed, steps, frames, folder / f"seed{seed}") for seed in range(1, seeds + 1)]
        per_seed = [task.result() for task in tasks]
    by_margin = {str(margin): _ratio(per_seed, str(margin)) for margin in MARGINS}
    headline = str(TARGET_MARGIN)
    warm = [each["warm_steps"][headline] for each in per_seed if each["warm_steps"][headline] is not None]
    worse = [each["forgetting"] for each in per_seed]
    return {
        "steps_ratio": by_margin[headline][0],
        "steps_ratio_low": by_margin[headline][1],
        "steps_ratio_high": by_margin[headline][2],
        "steps_ratio_by_margin": {margin: ratio for margin, (ratio, _low, _high) in by_margin.items()},
        "seeds": seeds,
        "drift": CONDITIONS[1][0],
        "target_margin": TARGET_MARGIN,
        "scratch": {
            "plan_steps": steps,
            "steps": statistics.median(each["scratch_steps"][headline] for each in per_seed),
            # By how much the last doubling of the plan improved it: below the target's margin, it had converged.
            "last_doubling": max(each["scratch_last_doubling"] for each in per_seed),
            "converged": all(each["scratch_last_doubling"] < TARGET_MARGIN for each in per_seed),
        },
        "warm": {"steps": statistics.median(warm) if warm else None},
        "returning": {
            "won": sum(each["recalled"] == "1" for each in per_seed),
            "of": seeds,
            "steps": 0,
            "too_early": sum(each["recalled_too_early"] for each in per_seed),
        },
        "forgetting": {
            "margin": FORGETTING_MARGIN,
            "conditions": len(CONDITIONS),
            "zoo": max(each["zoo"] for each in worse),
            "live": max(each["live"] for each in worse),
            "within_margin": all(each["zoo"] <= FORGETTING_MARGIN for each in worse),
        },
        "model": _MODEL.name,
        "frames": frames,
        "batch_frames": _BATCH_FRAMES,
        "processes": min(cores, seeds),
        "seconds": round(time.monotonic() - begun_s, 1),
        "per_seed": per_seed,
    }


def _ratio(per_seed: Sequence[Mapping[str, Any]], margin: str) -> tuple[float | None, float | None, float | None]:
    """Of the steps to a target, over all seeds; None if one of them did not reach it."""
    pairs = [(each["scratch_steps"][margin], each["warm_steps"][margin]) for each in per_seed]
    if any(warm is None for _scratch, warm in pairs):
        return None, None, None
    return geometric_mean([scratch / max(1, warm) for scratch, warm in pairs])


def geometric_mean(ratios: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The geometric mean and its 95 % interval; one value alone has none."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return round(math.exp(mean), 2), None, None
    t95 = _T95[min(len(logs) - 2, len(_T95) - 1)]
    half = t95 * statistics.stdev(logs) / math.sqrt(len(logs))
    return round(math.exp(mean), 2), round(math.exp(mean - half), 2), round(math.exp(mean + half), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """Frames of one stay at one condition."""

    ref: ShardRef
    frames: NewestFrames


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One training: the hold-out's score after so many steps, and the best weights."""

    curve: list[tuple[int, float]]
    weights: Weights

    @property
    def best(self) -> float:
        return min(nll for _step, nll in self.curve)

    def steps_to(self, target: float) -> float:
        return next((step for step, nll in self.curve if nll <= target), math.inf)


@dataclass(slots=True)
class _Zoo:
    """The versions of one seed: networks instead of bundles, and the zoo's own decision on them."""

    weights: dict[str, Weights] = field(default_factory=dict)
    animals: list[Animal] = field(default_factory=list)
    champion: str = ""

    def add(self, run: _Run, visit: _Visit) -> None:
        """The next version, champion from now on."""
        self.champion = str(len(self.animals) + 1)
        self.weights[self.champion] = run.weights
        own = score(run.weights, visit.frames, self.champion)
        self.animals.append(
            Animal(
                version=self.champion,
                folder=Path(),
                data=visit.frames.seen.data,
                own=own,
                own_zero=visit.frames.seen.zero,
            )
        )

    def ask(self, visit: _Visit) -> Recall:
        """As a cycle asks it."""
        reports = {version: score(weights, visit.frames, version) for version, weights in self.weights.items()}
        return decide(
            self.animals,
            reports,
            visit.frames.seen,
            self.champion,
            zoo=ZooSection(),
            gate=GatePolicy(),
            training=TrainingSection(),
        )


def one_seed(seed: int, steps: int, frames: int, folder: Path) -> dict[str, Any]:
    """The way through all conditions and back, for one seed."""
    torch.set_num_threads(1)
    bench = _Bench(seed, frames, folder)
    visits = [bench.visit(number, conditions) for number, (_name, conditions) in enumerate(CONDITIONS)]
    zoo, chain_steps = _Zoo(), max(1, steps // _CHAIN_SHARE)
    zoo.add(bench.train([visits[0]], steps), visits[0])

    scratch = bench.train([visits[1]], steps, seed=seed + 1000)
    targets = {margin: scratch.best + margin * abs(scratch.best) for margin in MARGINS}
    shorter = [bench.train([visits[1]], max(1, steps // part), seed=seed + 1000) for part in (2, 4)]
    warm = bench.warm_runs(zoo, visits[1], until=min(targets.values()), at_most=max(_SHORTEST_WARM, steps // 2))

    ancestors, too_early = [], 0
    for number in range(1, len(visits)):
        found = zoo.ask(visits[number])
        too_early += bool(found.fits)
        ancestors.append(found.base)
        run = bench.train([visits[number], visits[number - 1]], chain_steps, start=zoo.weights[found.base])
        zoo.add(run, visits[number])

    back = bench.visit(len(visits), CONDITIONS[0][1])
    found = zoo.ask(back)
    first = score(zoo.weights["1"], back.frames, "1").nll
    worse = {
        name: round(score(zoo.weights[version], back.frames, version).nll / first - 1, 5)
        for name, version in (("live", zoo.champion), ("zoo", found.fits or zoo.champion))
    }
    return {
        "seed": seed,
        "scratch_nll": round(scratch.best, 4),
        "scratch_steps": _fewest([scratch, *shorter], targets),
        "scratch_last_doubling": round((shorter[0].best - scratch.best) / abs(scratch.best), 5),
        "warm_steps": _fewest(warm, targets),
        "ancestors": ancestors,
        "recalled": found.fits,
        "recalled_too_early": too_early,
        "forgetting": worse,
    }


def _fewest(runs: Sequence[_Run], targets: Mapping[float, float]) -> dict[str, int | None]:
    """Fewest steps to each target over all plans, by margin; None where no plan gets there."""
    fewest = {str(margin): min(run.steps_to(target) for run in runs) for margin, target in targets.items()}
    return {margin: int(steps) if math.isfinite(steps) else None for margin, steps in fewest.items()}


def score(weights: Weights, frames: NewestFrames, version: str) -> EvaluationReport:
    """Held-out thinned NLL of a network."""
    module = build_module(_MODEL)
    module.load_state_dict(weights)
    return evaluate(rate_function(module), frames.holdout, "challenger", version)


class _Bench:
    """Frames and trainings of one seed, below `folder`."""

    def __init__(self, seed: int, frames: int, folder: Path) -> None:
        self._seed, self._frames, self._folder = seed, frames, folder
        self._runs = 0

    def visit(self, number: int, conditions: Mapping[str, float]) -> _Visit:
        """Fresh shots: no two visits share one, nor a pulse id."""
        counts_NCE: npt.NDArray[np.uint8] = simulated_counts(self._frames, seed=100 * self._seed + number, **conditions)
        first = number * self._frames
        ref = staged_frames(self._folder / "stage", counts_NCE, first_pulse_id=first, seq=number)
        pulse_id_N = np.arange(first, first + self._frames, dtype=np.uint64)
        run_N = np.ones(self._frames, np.int64)
        frames = pick_held_out(counts_NCE, run_N, pulse_id_N, _HOLDOUT, most=_HOLDOUT.max_frames)
        return _Visit(ref=ref, frames=frames)

    def warm_runs(self, zoo: _Zoo, visit: _Visit, *, until: float, at_most: int) -> list[_Run]:
        """Trainings from the ancestor that the zoo finds, each with twice the steps, until one reaches the score `until`."""
        start, plan, runs = zoo.weights[zoo.ask(visit).base], _SHORTEST_WARM, []
        while plan <= at_most:
            runs.append(self.train([visit], plan, start=start))
            if runs[-1].best <= until:
                break
            plan *= 2
        return runs

    def train(
        self, visits: Sequence[_Visit], steps: int, *, start: Weights | None = None, seed: int | None = None
    ) -> _Run:
        """Train on the first visit's frames, and the others' as replay; scored on the first's."""
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        folder.mkdir(parents=True)
        hyper = TrainHyper(
            batch_frames=_BATCH_FRAMES, max_steps=steps, max_epochs=1_000_000, train_s=1e6,
            evaluate_every_steps=max(1, steps // _LOOKS),
        )  # fmt: skip
        job = TrainJob(
            job_id=f"run{self._runs}", model=_MODEL, fresh=(visits[0].ref,), output_dir=str(folder), deadline_s=1e7,
            replay=tuple(visit.ref for visit in visits[1:]), hyper=hyper, holdout=_HOLDOUT,
            seed=self._seed if seed is None else seed,
        )  # fmt: skip
        torch.manual_seed(job.seed)
        module = build_module(_MODEL)
        if start is not None:
            module.load_state_dict(start)
        with joined_ranks() as ranks:
            train(job, module, load_data(job), ranks, folder=folder, told_to_stop=lambda: False)
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        curve = [(line["step"], line["nll"]) for line in lines if "nll" in line]
        return _Run(curve=curve, weights={name: value.detach().clone() for name, value in module.state_dict().items()})
