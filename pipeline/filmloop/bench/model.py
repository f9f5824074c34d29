"""How near networks come to the truth, few counts and many, trained without labels, beside the classical baselines.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from filmloop.core.documents import ModelChoice, ShardRef, TrainHyper, TrainJob
from filmloop.testing.training import staged_frames
from filmloop.training.data import load_data
from filmloop.training.evaluate import rate_function
from filmloop.training.holdout import RateFunction
from filmloop.training.load import build_module
from filmloop.training.ranks import Ranks
from filmloop.training.score import truth_scores
from filmloop.training.trainer import train
from filmloop_models.cookiebox.baselines import TemplatePursuit, TunedGaussian
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import BLOCK_FRAMES, CookieBoxSimulator

FRAME_SHAPE = (16, 128)
REGIMES = {"hits_50": 50.0, "hits_650": 650.0}
"""Hits a frame, on average."""
_MIXER_FACTOR = 10
"""A step of the mixer takes a seventh of the time of one of `unrolled`, and it learns more slowly."""


def measure(model: str, steps: int, frames: int, folder: Path, *, test_frames: int = 1000) -> dict[str, Any]:
    """Train `model` and the mixer in both regimes by the trainer's own loop, and score them with the baselines.

    Args:
        model: Catalog name.
        steps: Training steps of 256 frames; the mixer has ten times as many.
        frames: Simulated frames; the tenth that is held out chooses the best weights by thinned likelihood.
        folder: For checkpoints.
        test_frames: Simulated frames to score; half of them, others, tune the Gaussian to the truth.

    Returns:
        For every regime the scores of `training.score.truth_scores` with `_mixer`, `_gaussian` (tuned on labels) and
        `_pursuit` beside the network's own; labels have the unit of CookieSimSlim, 2 per line and channel.
    """
    regimes = {}
    for regime, hits in REGIMES.items():
        conditions = Conditions()
        # Lines with their secondary electrons, and dark counts.
        dark = conditions.dark_per_bin * FRAME_SHAPE[0] * FRAME_SHAPE[1]
        per_pulse = (hits - dark) / (conditions.pulses_mean * (1 + conditions.secondary_fraction))
        simulator = CookieBoxSimulator(Conditions(hits_per_pulse=per_pulse), seed=11, frame_shape=FRAME_SHAPE)
        # Whole blocks apart: the test frames are drawn with their truth.
        first_test = -(-frames // BLOCK_FRAMES) * BLOCK_FRAMES
        known, test = simulator.frames(0, frames), simulator.frames(first_test, test_frames, truth=True)
        assert test.signal_NCE is not None
        truth_NCE = test.signal_NCE * np.float32(2 * FRAME_SHAPE[0] / per_pulse)
        tune = simulator.frames(first_test + test_frames, test_frames // 2, truth=True)
        assert tune.signal_NCE is not None
        shard = staged_frames(folder / f"{regime}-stage", known.counts_NCE)
        pursuit = TemplatePursuit.tune(known.counts_NCE, max_frames=min(200, test_frames))
        rates: dict[str, RateFunction] = {
            "": _trained(model, steps, shard, folder / f"{regime}-{model}"),
            "_mixer": _trained("mixer", _MIXER_FACTOR * steps, shard, folder / f"{regime}-peer"),
            "_gaussian": TunedGaussian.tune_to_labels(tune.counts_NCE, tune.signal_NCE).rate,
            "_pursuit": pursuit.rate,
        }
        regimes[regime] = {
            "hits_per_frame": round(float(test.counts_NCE.sum() / len(test)), 1),
            **truth_scores(test.counts_NCE, truth_NCE, rates, pursuit),
        }
    return {"model": model, "steps": steps, "steps_mixer": _MIXER_FACTOR * steps, "frames": frames, **regimes}


def _trained(name: str, steps: int, shard: ShardRef, folder: Path) -> RateFunction:
    folder.mkdir()
    choice = ModelChoice(name=name, frame_shape=FRAME_SHAPE)
    hyper = TrainHyper(
        max_steps=steps,
        max_epochs=10**6,
        train_s=1e6,
        warmup_steps=min(20, steps),
        evaluate_every_steps=max(steps // 4, 1),
    )
    job = TrainJob(
        job_id=f"bench-{name}", model=choice, fresh=(shard,), output_dir=str(folder), hyper=hyper, deadline_s=1e7
    )
    torch.manual_seed(0)
    module = build_module(choice)
    train(job, module, load_data(job), Ranks(), folder=folder, told_to_stop=lambda: False)
    return rate_function(module)
