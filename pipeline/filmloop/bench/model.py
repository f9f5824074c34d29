"""How near networks come to the truth, few counts and many, trained without labels, beside the classical baselines.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from filmloop.core.documents import HoldoutPolicy, ModelChoice, TrainHyper, TrainJob
from filmloop.core.poisson import thin_by_hash
from filmloop.training.data import Holdout, TrainingData
from filmloop.training.evaluate import RateFunction, rate_function
from filmloop.training.load import build_module
from filmloop.training.ranks import Ranks
from filmloop.training.score import truth_scores
from filmloop.training.trainer import train
from filmloop_models.cookiebox.baselines import TemplatePursuit, TunedGaussian
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import BLOCK_FRAMES, CookieBoxSimulator, SimulatedFrames

FRAME_SHAPE = (16, 128)
REGIMES = {"hits_50": 50.0, "hits_650": 650.0}
"""Hits a frame, on average."""
_HELD_FRAMES = 500
_MIXER_FACTOR = 10
"""A step of the mixer takes a seventh of the time of one of `unrolled`, and it learns more slowly."""


def measure(model: str, steps: int, frames: int, folder: Path, *, test_frames: int = 1000) -> dict[str, Any]:
    """Train `model` and the mixer in both regimes by the trainer's own loop, and score them with the baselines.

    Args:
        model: Catalog name.
        steps: Training steps of 256 frames; the mixer has ten times as many.
        frames: Simulated frames to train on; 500 others choose the best weights by thinned likelihood.
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
        first_test = -(-(frames + _HELD_FRAMES) // BLOCK_FRAMES) * BLOCK_FRAMES
        known, test = simulator.frames(0, frames + _HELD_FRAMES), simulator.frames(first_test, test_frames, truth=True)
        assert test.signal_NCE is not None
        truth_NCE = test.signal_NCE * np.float32(2 * FRAME_SHAPE[0] / per_pulse)
        tune = simulator.frames(first_test + test_frames, test_frames // 2, truth=True)
        assert tune.signal_NCE is not None
        pursuit = TemplatePursuit.tune(known.counts_NCE, max_frames=min(200, test_frames))
        rates: dict[str, RateFunction] = {
            "": _trained(model, steps, known, frames, folder / f"{regime}-{model}"),
            "_mixer": _trained("mixer", _MIXER_FACTOR * steps, known, frames, folder / f"{regime}-peer"),
            "_gaussian": TunedGaussian.tune_to_labels(tune.counts_NCE, tune.signal_NCE).rate,
            "_pursuit": pursuit.rate,
        }
        regimes[regime] = {
            "hits_per_frame": round(float(test.counts_NCE.sum() / len(test)), 1),
            **truth_scores(test.counts_NCE, truth_NCE, rates, pursuit),
        }
    return {"model": model, "steps": steps, "steps_mixer": _MIXER_FACTOR * steps, "frames": frames, **regimes}


def _trained(name: str, steps: int, known: SimulatedFrames, frames: int, folder: Path) -> RateFunction:
    folder.mkdir()
    choice, policy = ModelChoice(name=name, frame_shape=FRAME_SHAPE), HoldoutPolicy()
    hyper = TrainHyper(
        max_steps=steps,
        max_epochs=10**6,
        train_s=1e6,
        warmup_steps=min(20, steps),
        evaluate_every_steps=max(steps // 4, 1),
    )
    job = TrainJob(job_id=f"bench-{name}", model=choice, fresh=(), output_dir=str(folder), hyper=hyper, deadline_s=1e7)
    held, ids_N = known.counts_NCE[frames:], known.pulse_id_N[frames:]
    holdout = Holdout(
        run_N=np.zeros(len(held), np.int64),
        pulse_id_N=ids_N,
        counts_NCE=held,
        kept_NCE=thin_by_hash(held, ids_N, keep=policy.keep, seed=policy.seed),
        label_NCE=None,
        policy=policy,
    )
    data = TrainingData(
        counts_NCE=known.counts_NCE[:frames], label_NCE=None, label_gain=1.0, holdout=holdout, lineage={}
    )
    torch.manual_seed(0)
    module = build_module(choice)
    train(job, module, data, Ranks(), folder=folder, told_to_stop=lambda: False)
    return rate_function(module)
