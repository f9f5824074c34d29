"""How good a bundle is on frames that it has not seen: against the truth where there is one, and without it.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.bundle import RESULT
from filmloop.core.documents import HoldoutPolicy, TrainResult
from filmloop.core.errors import DataError
from filmloop.core.holdout import held_out
from filmloop.training.data import MIN_TRAIN_FRAMES
from filmloop.training.evaluate import constant_rate, evaluate, rate_function
from filmloop.training.holdout import MIN_HELD_OUT_FRAMES, Holdout, RateFunction
from filmloop.training.load import load_module
from filmloop_models.cookiebox.baselines import TemplatePursuit, TunedGaussian
from filmloop_models.cookiebox.pulses import read_pulses, score_pulses
from filmloop_models.cookiebox.score import mse_after_gain_and_shift, shifted

_TUNE_FRAMES = 500

Scores = dict[str, float | int | None]

PULSE_FRAMES = 200
"""Frames whose sub-pulses are read: the estimator takes some milliseconds for each."""
_METHODS = ("", "_gaussian", "_pursuit")
_PULSES = ("pulse_count", "pulses_found", "phase_error_deg")


def score_frames(
    bundle: Path,
    counts_NCE: npt.NDArray[np.uint8],
    label_NCE: npt.NDArray[np.floating] | None,
    pulse_id_N: npt.NDArray[np.uint64],
    policy: HoldoutPolicy,
) -> Scores:
    """Score a verified bundle, and the classical baselines, on the held-out ones of these frames.

    Baselines are tuned on the other frames: the Gaussian to the labels for `mse_gaussian`, by likelihood for
    `nll_gaussian`; the pursuit never sees a label. Every `mse` is to the labels after one fitted gain and integer bin
    shift for the whole set.

    Args:
        bundle: Folder of the bundle.
        counts_NCE: All frames, held out and not.
        label_NCE: Their true rates in any unit, or None.
        pulse_id_N: What decides which frames are held out.
        policy: The policy under which the bundle was trained; the newest `max_frames` held-out frames count.

    Returns:
        `frames`, `nll`, `nll_low`, `nll_high`, `nll_gaussian`, `nll_zero` in nats a frame; `mse`, `mse_gaussian`,
        `mse_pursuit`, `mse_zero`, which are None without labels. Of the newest `PULSE_FRAMES` also `pulse_count` (share of
        frames with the right number of sub-pulses), `pulses_found` (share of sub-pulses found) and `phase_error_deg`
        (their median phase error), for the model, `_gaussian` and `_pursuit`, as one estimator reads them off the rates
        and off the labels (`cookiebox.pulses`); None without labels.

    Raises:
        DataError: too few frames, or of another shape than the bundle's.
        VerificationError: the bundle does not fit its network.
    """
    shape = TrainResult.read(bundle / RESULT).model.frame_shape
    if counts_NCE.shape[1:] != shape:
        raise DataError(
            f"The model takes frames of shape {shape}, the data have {counts_NCE.shape[1:]}.",
            hint="Evaluate a version that was trained on such frames: `filmloop models list`.",
            ids={"path": str(bundle)},
        )
    chosen, others = _split(pulse_id_N, policy)
    held = Holdout.of(counts_NCE[chosen], np.zeros(len(chosen), np.int64), pulse_id_N[chosen], policy)
    tune_on = others[-_TUNE_FRAMES:]
    rate_of = rate_function(load_module(bundle))
    report = evaluate(rate_of, held, "challenger")
    scores: Scores = {
        "frames": report.frames,
        "nll": report.nll,
        "nll_low": report.nll_low,
        "nll_high": report.nll_high,
    }
    blur = TunedGaussian.tune(counts_NCE[tune_on], keep=policy.keep, seed=policy.seed)
    scores["nll_gaussian"] = evaluate(blur.rate, held, "gaussian").nll
    scores["nll_zero"] = evaluate(constant_rate(counts_NCE[tune_on]), held, "zero").nll
    if label_NCE is None:
        none = dict.fromkeys(("mse", "mse_gaussian", "mse_pursuit", "mse_zero"))
        return scores | none | {key + method: None for method in _METHODS for key in _PULSES}
    truth_NCE = np.asarray(label_NCE[chosen], np.float32)
    gaussian = TunedGaussian.tune_to_labels(counts_NCE[tune_on], np.asarray(label_NCE[tune_on], np.float32))
    pursuit = TemplatePursuit.tune(counts_NCE[others], keep=policy.keep, seed=policy.seed)
    rates = {"": rate_of, "_gaussian": gaussian.rate, "_pursuit": pursuit.rate}
    return scores | truth_scores(held.counts_NCE, truth_NCE, rates, pursuit)


def truth_scores(
    counts_NCE: npt.NDArray[np.uint8],
    truth_NCE: npt.NDArray[np.float32],
    rates: Mapping[str, RateFunction],
    pursuit: TemplatePursuit,
) -> Scores:
    """What `score_frames` says of every method where there is a truth.

    Args:
        counts_NCE: Frames.
        truth_NCE: Their labels, in any unit.
        rates: The methods, each by what to append to the names of its scores.
        pursuit: The estimator of sub-pulses, tuned without labels.
    """
    scores: Scores = {"mse_zero": float(np.mean(np.square(truth_NCE, dtype=np.float64)))}
    # The labels in counts and where the counts are, as the pursuit has them: a bad network must not displace its judge.
    _, gain, shift = mse_after_gain_and_shift(pursuit.rate(counts_NCE.astype(np.float32)), truth_NCE)
    as_counts_NCE = shifted(truth_NCE[-PULSE_FRAMES:], -shift) / np.float32(gain or 1.0)
    truth_pulses_NPK = read_pulses(as_counts_NCE, pursuit)
    for method, rate_of in rates.items():
        rate_NCE = rate_of(counts_NCE.astype(np.float32))
        scores["mse" + method] = mse_after_gain_and_shift(rate_NCE, truth_NCE)[0]
        last_NCE = rate_NCE[-PULSE_FRAMES:]
        pulses = score_pulses(read_pulses(last_NCE, pursuit), truth_pulses_NPK, width_bin=pursuit.width_bin)
        scores["pulse_count" + method] = pulses.count_accuracy
        scores["pulses_found" + method] = pulses.found
        scores["phase_error_deg" + method] = pulses.phase_error_deg if np.isfinite(pulses.phase_error_deg) else None
    return scores


def _split(
    pulse_id_N: npt.NDArray[np.uint64], policy: HoldoutPolicy
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the frames to score on and of those that baselines may be tuned on."""
    is_held_N = held_out(pulse_id_N, policy.permille)
    chosen, others = np.flatnonzero(is_held_N)[-policy.max_frames :], np.flatnonzero(~is_held_N)
    if len(chosen) < MIN_HELD_OUT_FRAMES or len(others) < MIN_TRAIN_FRAMES:
        raise DataError(
            f"{len(chosen)} held-out and {len(others)} other frames are too few to score on.",
            hint=f"At least {MIN_HELD_OUT_FRAMES} and {MIN_TRAIN_FRAMES} are needed; give more frames.",
        )
    return chosen, others
