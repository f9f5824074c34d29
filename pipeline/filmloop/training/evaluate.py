"""Scores on the held-out frames, label-free: how well a predictor that sees one part of a frame foretells the other.

Challenger, champion and the baselines see the same frames, split in the same way.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from filmloop.core.documents import EvaluationReport, TrainJob
from filmloop.core.errors import TrainingError, VerificationError
from filmloop.training.data import TrainingData
from filmloop.training.holdout import Holdout, RateFunction
from filmloop.training.load import load_module, verified_bundle
from filmloop_models.cookiebox.gaussian import TunedGaussian

TUNE_FRAMES = 200
"""Frames that the Gaussian baseline is tuned on: .2 s of CPU. 500 take more than twice as long and gave .01 nats a frame less of 301 at 620
hits, .03 of 67 at 50 hits."""
_BATCH_FRAMES = 256
_AS_KNOWN = 1e-4
"""Scores that were found before are found again to this share of the largest: batches of another length round otherwise."""
_log = logging.getLogger(__name__)


def rate_function(module: nn.Module) -> RateFunction:
    """`module` as a function of NumPy arrays, in evaluation mode, a batch at a time on the module's device."""
    module.eval()
    device = next(module.parameters()).device

    def rate(counts_NCE: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(counts_NCE[start : start + _BATCH_FRAMES]).to(device)).cpu()
                for start in range(0, len(counts_NCE), _BATCH_FRAMES)
            ]
        return np.asarray(torch.cat(parts).numpy(), np.float32)

    return rate


def constant_rate(counts_NCE: npt.NDArray[np.uint8]) -> RateFunction:
    """The predictor that knows nothing but the mean count of a bin."""
    mean = np.float32(counts_NCE.mean(dtype=np.float64))
    return lambda other_NCE: np.full(other_NCE.shape, mean, np.float32)


def tuned_gaussian(counts_NCE: npt.NDArray[np.uint8], holdout: Holdout) -> RateFunction:
    """The Gaussian filter that predicts training frames best, tuned without labels at the hold-out's split."""
    policy = holdout.policy
    return TunedGaussian.tune(counts_NCE[-TUNE_FRAMES:], keep=policy.keep, seed=policy.seed).rate


def evaluate_challenger(
    module: nn.Module, holdout: Holdout, known_N: Tensor | None = None
) -> dict[str, EvaluationReport]:
    """Report of what was trained.

    Args:
        module: The network with its best weights.
        holdout: The frames to score it on.
        known_N: Their scores as the training loop found them for these weights. A batch of them is found again first:
            if it is not the same, all are.

    Raises:
        TrainingError: a score is not finite.
    """
    rate_of = rate_function(module)
    if known_N is not None:
        score_N, sample = known_N.cpu().numpy(), holdout[-_BATCH_FRAMES:]
        again_N = sample.scores(rate_of)
        if np.allclose(again_N, score_N[-len(again_N) :], rtol=0, atol=_AS_KNOWN * float(np.abs(again_N).max())):
            return {"challenger": _report(holdout, score_N, "challenger")}
        _log.warning("the shipped weights do not score as the best ones did in training: all frames are scored again")
    return {"challenger": evaluate(rate_of, holdout, "challenger")}


def evaluate_baselines(data: TrainingData) -> dict[str, EvaluationReport]:
    """Reports of gaussian and zero: NumPy alone, and nothing of the training, so a thread may make them meanwhile.

    Raises:
        TrainingError: a score is not finite.
    """
    return {
        "gaussian": evaluate(tuned_gaussian(data.sample_NCE, data.holdout), data.holdout, "gaussian"),
        "zero": evaluate(constant_rate(data.sample_NCE), data.holdout, "zero"),
    }


def evaluate_champion(
    job: TrainJob, data: TrainingData, device: torch.device, start_N: Tensor | None = None
) -> dict[str, EvaluationReport]:
    """Report of the champion on the same held-out frames; empty if the job names none.

    Args:
        job: Names the champion.
        data: The frames.
        device: Where the champion computes.
        start_N: Scores of the weights that training started from: the champion's, where it did from that.

    Raises:
        VerificationError: the champion's bundle is damaged or does not take these frames.
        TrainingError: a score is not finite.
    """
    if job.champion is None:
        return {}
    if job.champion == job.base and start_N is not None:
        return {"champion": _report(data.holdout, start_N.cpu().numpy(), "champion", job.champion.version)}
    folder, result = verified_bundle(job.champion)
    if result.model.frame_shape != job.model.frame_shape:
        raise VerificationError(
            f"Champion {job.champion.version} takes frames of shape {result.model.frame_shape}, "
            f"these are {job.model.frame_shape}.",
            hint="Frames of another shape need a model name of their own: set [model] registered_as.",
            ids={"version": job.champion.version},
        )
    champion = load_module(folder).to(device)
    return {"champion": evaluate(rate_function(champion), data.holdout, "champion", job.champion.version)}


def evaluate(rate_of: RateFunction, holdout: Holdout, name: str, version: str = "") -> EvaluationReport:
    """Score one predictor.

    Raises:
        TrainingError: a score is not finite.
    """
    return _report(holdout, holdout.scores(rate_of), name, version)


def _report(holdout: Holdout, nll_N: npt.NDArray[np.float64], name: str, version: str = "") -> EvaluationReport:
    if not np.isfinite(nll_N).all():
        raise TrainingError(
            f"{name} {version} gives rates that are not finite on {int((~np.isfinite(nll_N)).sum())} held-out frames.",
            hint="Train again; if it is the champion, roll back with `filmloop models rollback`.",
        )
    return holdout.report(name, nll_N, version)
