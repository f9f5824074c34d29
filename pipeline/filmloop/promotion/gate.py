"""The gate: does the challenger replace the reference? A pure function of two reports and a policy.

Both models are scored on the same held-out frames, so frame by frame differences cancel what the frames themselves
contribute, and a paired bootstrap of their mean says how sure the difference is.

The gain is the mean difference in NLL over the reference's mean |NLL| of a frame. The NLL lacks its log b! term and
may have either sign, so a ratio of two NLLs means nothing; the mean of absolute values is positive for any frames that
hold counts. The reference's scores set the scale for every challenger of one judgement; the scale itself is not
resampled, it cancels out of the sign.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import GatePolicy
from filmloop.core.counted import counted
from filmloop.core.documents import EvaluationReport, Verdict
from filmloop.core.poisson import bootstrap_mean

Decision = Literal["promote", "refuse", "undecided"]


def judge(challenger: EvaluationReport, reference: EvaluationReport, policy: GatePolicy, *, against: str) -> Verdict:
    """Promote, refuse or undecided, with the reasons in words.

    promote: the interval of the gain lies above 0, and the gain reaches `policy.min_gain`.
    refuse: even the upper bound is below `policy.min_gain` (worse, or not worth a swap), or scores are not finite.
    undecided: anything else; too few frames, reports of different frames, or an interval that allows both.

    Args:
        challenger: Report of the new weights.
        reference: Report of the champion, or of the Gaussian baseline for a first version.
        policy: Thresholds and the bootstrap's settings.
        against: Name of the reference in the words: champion or gaussian.
    """
    if not _finite(challenger):
        return _unmeasured("refuse", challenger, against, "The challenger's score is not a finite number.")
    if problem := _incomparable(challenger, reference, policy, against):
        return _unmeasured("undecided", challenger, against, problem)
    scores_N, reference_N = _nats(challenger), _nats(reference)
    scale = float(np.abs(reference_N).mean())
    if scale == 0.0:
        return _unmeasured("undecided", challenger, against, f"The {against} scores 0 nats on every frame.")
    better_N = (reference_N - scores_N) / scale
    gain = float(better_N.mean())
    low, high = bootstrap_mean(better_N, confidence=policy.confidence, resamples=policy.resamples, seed=policy.seed)
    decision, why = _decide(gain, low, high, policy.min_gain)
    return Verdict(
        decision=decision,
        reasons=(_in_words(gain, low, high, scores_N, reference_N, policy, against), why),
        against=against,
        gain=gain,
        gain_low=low,
        gain_high=high,
        frames=challenger.frames,
    )


def _decide(gain: float, low: float, high: float, min_gain: float) -> tuple[Decision, str]:
    floor = f"the smallest gain worth a swap ({_percent(min_gain)} %)"
    if low == high == 0:
        return "refuse", "It makes the same predictions: training found nothing better."
    if low > 0 and gain >= min_gain:
        return "promote", "The whole interval is better."
    if high < 0:
        return "refuse", "The whole interval is worse."
    if high == 0 or high < min_gain:
        return "refuse", f"Even the best end of the interval does not reach {floor}."
    if low > 0:
        return "undecided", f"Surely better, but by less than {floor}."
    return "undecided", "The interval allows both better and worse; more held-out frames would tell."


def _nats(report: EvaluationReport) -> npt.NDArray[np.float64]:
    return np.asarray(report.nll_frames, dtype=np.float64)


def _finite(report: EvaluationReport) -> bool:
    return bool(np.isfinite(report.nll) and np.isfinite(_nats(report)).all())


def _incomparable(challenger: EvaluationReport, reference: EvaluationReport, policy: GatePolicy, against: str) -> str:
    """Why these two reports cannot be compared, or ''."""
    if challenger.frames_digest != reference.frames_digest:
        return (
            f"Challenger and {against} were scored on different frames "
            f"({challenger.frames_digest[:12]} and {reference.frames_digest[:12]}); only the same frames compare."
        )
    for name, report in (("challenger", challenger), (against, reference)):
        if len(report.nll_frames) != report.frames:
            return (
                f"The report of the {name} holds {len(report.nll_frames)} scores for {report.frames} frames; "
                "a paired comparison needs every one."
            )
    if challenger.frames != reference.frames:
        return f"Challenger and {against} were scored on {challenger.frames} and {reference.frames} frames."
    if challenger.frames < policy.min_frames:
        return f"Only {counted(challenger.frames, 'held-out frame')}; the gate decides on {policy.min_frames} or more."
    if not _finite(reference):
        return f"The score of the {against} is not a finite number, so nothing can be compared with it."
    return ""


def _unmeasured(decision: Decision, challenger: EvaluationReport, against: str, reason: str) -> Verdict:
    """A verdict without a comparison: no gain in either direction."""
    return Verdict(
        decision=decision,
        reasons=(reason,),
        against=against,
        gain=0.0,
        gain_low=0.0,
        gain_high=0.0,
        frames=challenger.frames,
    )


def _in_words(
    gain: float,
    low: float,
    high: float,
    scores_N: npt.NDArray[np.float64],
    reference_N: npt.NDArray[np.float64],
    policy: GatePolicy,
    against: str,
) -> str:
    if gain < 0:
        gain, low, high, sense = -gain, -high, -low, "more"
    else:
        sense = "fewer"
    return (
        f"{_percent(gain)} % {sense} nats a frame than the {against} on the same {len(scores_N)} held-out frames "
        f"({policy.confidence * 100:g} % interval {_percent(low)} to {_percent(high)} %; "
        f"{scores_N.mean():.4g} against {reference_N.mean():.4g})."
    )


def _percent(share: float) -> str:
    """Percent with three significant digits, never in exponent form."""
    value = share * 100
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{min(digits, 4)}f}"
