"""Looks for the right ancestor among all former versions, and says whether one of them fits again as it is.

    describe   what do the newest frames look like?
    choose     which versions were trained on such frames?
    score      how well do they foretell held-out frames, without a label?
    decide     start from the best; or, if it is as good as it ever was, take it without training

Nothing here may fail a cycle: a version that cannot be had or scored is left out and named.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import Field

from filmloop.bundle import JOB, RESULT, load_evaluation, load_golden
from filmloop.config.schema import GatePolicy, TrainingSection, ZooSection
from filmloop.core.counted import counted
from filmloop.core.documents import Document, EvaluationReport, ModelChoice, TrainJob, TrainResult, Verdict
from filmloop.core.errors import DataError, FilmloopError
from filmloop.core.poisson import two_sided_z
from filmloop.journal import CycleParts
from filmloop.ports.registry import CHAMPION
from filmloop.promotion.gate import judge
from filmloop.shipping import kept_bundles, local_bundle
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.zoo.embedding import DataEmbedding, difference, distance, embed
from filmloop.zoo.index import DATA_TAG, Entry, form_of, mistrusted, nearest
from filmloop.zoo.memory import Memory
from filmloop.zoo.scorer import Scorer
from filmloop.zoo.seen import Seen

_log = logging.getLogger(__name__)

_WHOLE_HISTORY = 1_000_000
_Z95 = two_sided_z(0.05)
_EMBED_FRAMES = 20_000
FEW_FRAMES = 200
"""A version whose frames are known from fewer is never promoted without training: they would look like any others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Animal:
    """A version that can be scored: its bundle, verified, and what is known of it.

    Attributes:
        data: What the frames looked like that it was trained on.
        own: Its report at its own evaluation; `zero` beside it, for the scale.
        same_form: Whether training can start from it.
        gain_corrected: Whether its own report is of frames whose gains were corrected; the zoo's never are.
    """

    version: str
    folder: Path
    data: DataEmbedding
    own: EvaluationReport
    own_zero: EvaluationReport
    same_form: bool = True
    gain_corrected: bool = False


class Candidate(Document):
    """What was found out about one version. Gains are relative: shares of the mean |NLL| of what they are over."""

    version: str
    nll: float = Field(description="nats a frame on the newest held-out frames, lower is better")
    gain: float = Field(description="over the champion, on the same frames; 0 for the champion itself")
    gain_low: float
    gain_high: float
    over_zero: float = Field(description="gain over one mean rate in every bin, on the newest frames")
    over_zero_low: float
    over_zero_high: float
    own_over_zero: float = Field(description="the same on the frames of its own evaluation")
    own_over_zero_low: float
    own_over_zero_high: float
    distance: float = Field(
        description="between the newest frames and those it was trained on; 1 is a noticeable drift"
    )
    differs: dict[str, float] = Field(description="what that distance is made of")
    data: DataEmbedding
    same_form: bool = Field(description="whether training can start from it")
    fits: bool = Field(description="whether it may be champion again without training")
    why: str = Field(description="why not, or what makes it fit")


class Recall(Document):
    """What the zoo says about the newest frames."""

    champion: str = Field(description="'' for none")
    base: str = Field(description="version to start training from, '' for scratch")
    fits: str = Field(default="", description="version that may be champion without training, '' for none")
    message: str
    verdict: Verdict | None = Field(default=None, description="the gate's, on the version that fits")
    candidates: tuple[Candidate, ...] = Field(default=(), description="best first")
    left_out: dict[str, str] = Field(default_factory=dict, description="versions that could not be scored, and why")
    data: DataEmbedding | None = Field(default=None, description="what the newest frames look like")
    frames: int = Field(default=0, description="held-out frames scored on")
    seconds: float = 0.0

    def tag(self) -> str:
        """What the registry tells of it: JSON of a few hundred characters."""
        scored = {
            each.version: {"gain": _short(each.gain), "distance": _short(each.distance)} for each in self.candidates
        }
        return json.dumps({"champion": self.champion, "base": self.base, "frames": self.frames, "scored": scored})


def look_back(
    parts: CycleParts,
    fresh: Sequence[SealedShard],
    champion_of: Callable[[], str],
    *,
    scorer: Scorer,
    tell: Callable[[str], None],
    remember: bool = True,
) -> Recall:
    """Which version is the right ancestor for these frames, and does it need training at all?

    Args:
        parts: Of the cycle.
        fresh: Shards with the newest frames, oldest first.
        champion_of: Asks for the champion's version, '' for none; called while the frames are being read. What it
            raises is raised.
        scorer: Reads and scores; it may be loading already. The caller ends it.
        tell: Called with what is being done.
        remember: Write embeddings that the registry lacks into it.

    Raises:
        TransientError: the disk refuses.
    """
    zoo, training, begun_s = parts.config.zoo, parts.config.training, time.monotonic()
    if zoo.recall == "off":
        champion = champion_of()
        return _unasked(champion, "The zoo was not asked: [zoo] recall is off.", training)
    likely = dict(islice(kept_bundles(parts.home, parts.registry.model).items(), zoo.candidates + 1))
    scorer.begin([shard.manifest_path for shard in fresh], training.holdout, most=zoo.frames, likely=likely)
    champion, data = champion_of(), None
    try:
        seen = scorer.seen()
        data = seen.data
        found = _look_back(parts, scorer, seen, champion, tell=tell, remember=remember)
    except FilmloopError as exc:
        _log.warning("the zoo cannot be used now: %s", exc.message)
        found = _unasked(champion, f"The zoo could not be used: {exc.message}", training)
    for version, why in found.left_out.items():
        _log.warning("version %s is left out: %s", version, why)
        tell(f"version {version} is left out: {why}")
    return found.model_copy(update={"data": data, "seconds": round(time.monotonic() - begun_s, 3)})


def _look_back(
    parts: CycleParts, scorer: Scorer, seen: Seen, champion: str, *, tell: Callable[[str], None], remember: bool
) -> Recall:
    memory = Memory(parts.home.zoo / f"{parts.registry.model}.jsonl", parts.registry, keep=remember)
    found = _score_those_of(memory, parts, scorer, seen, champion, tell=tell, remember=remember)
    if found.base in ("", champion) or parts.registry.get(found.base) is not None:
        return found
    _log.info("version %s was remembered and is gone: the registry is asked for all of them", found.base)
    memory.forget()
    return _score_those_of(memory, parts, scorer, seen, champion, tell=tell, remember=remember)


def _score_those_of(
    memory: Memory,
    parts: CycleParts,
    scorer: Scorer,
    seen: Seen,
    champion: str,
    *,
    tell: Callable[[str], None],
    remember: bool,
) -> Recall:
    config = parts.config
    animals, left_out = _animals(memory, parts, seen.data, champion, remember=remember)
    if not _others(animals, champion):
        why = "There is no former version beside the champion." if champion else "There is no former version."
        return _unasked(champion, why, config.training).model_copy(update={"left_out": left_out})
    tell(f"scoring {counted(len(animals), 'version')} on {counted(seen.frames, 'held-out frame')}")
    scores = scorer.score({animal.version: animal.folder for animal in animals})
    found = decide(animals, scores.reports, seen, champion, zoo=config.zoo, gate=config.gate, training=config.training)
    return found.model_copy(update={"left_out": {**left_out, **scores.failed}})


def _unasked(champion: str, message: str, training: TrainingSection) -> Recall:
    """The champion is the ancestor, because nothing else is known."""
    return _as_the_site_trains(Recall(champion=champion, base=champion, message=message), training)


def decide(
    animals: Sequence[Animal],
    reports: Mapping[str, EvaluationReport],
    seen: Seen,
    champion: str,
    *,
    zoo: ZooSection,
    gate: GatePolicy,
    training: TrainingSection,
) -> Recall:
    """A pure function of the scores: which version to start from, and which may be champion without training.

    Training starts from the version with the best score, if it is surely better than the champion; else from that. The
    best one needs no training if it passes the gate against the champion, the newest frames look like those that it
    was trained on, and it is as far ahead of a constant rate as it was on its own.

    Of many candidates one looks better by chance more easily than one alone: the gate's error is shared among them.
    The site's training has the last word: without `warm_start` none is an ancestor, and none returns without training
    where training corrects gains, which the zoo does not.
    """
    scored = [animal for animal in animals if animal.version in reports]
    rivals = len(_others(scored, champion))
    strict = gate.model_copy(update={"confidence": 1 - (1 - gate.confidence) / max(1, rivals)})
    reference = reports.get(champion)
    verdicts = {
        animal.version: judge(reports[animal.version], reference, strict, against="champion")
        for animal in scored
        if reference is not None and animal.version != champion
    }
    candidates = sorted(
        (_candidate(animal, reports[animal.version], seen, verdicts.get(animal.version), zoo) for animal in scored),
        key=lambda each: each.nll,
    )
    found = Recall(champion=champion, base=champion, message="", candidates=tuple(candidates), frames=seen.frames)
    if champion and reference is None:
        unscored = "The champion could not be scored, so nothing compares with it."
        return _as_the_site_trains(found.model_copy(update={"message": unscored}), training)
    best = next((each for each in candidates if each.version != champion and each.same_form), None)
    leader = candidates[0] if candidates else None
    may_return = zoo.recall == "promote" and not training.hyper.normalise_gain
    if leader is not None and leader.fits and may_return:
        verdict = verdicts[leader.version]
        message = f"Version {leader.version} fits again: no training. {leader.why} {verdict.reasons[0]}"
        return found.model_copy(
            update={"base": leader.version, "fits": leader.version, "verdict": verdict, "message": message}
        )
    trainable = any(animal.version == champion and animal.same_form for animal in scored)
    lead = 0.0 if best is None else best.gain_low if trainable else best.over_zero_low
    base, message = champion, "No former version is of use."
    if best is not None and lead > 0:
        over = f"champion {champion}" if trainable else "a constant rate"
        gain = best.gain if trainable else best.over_zero
        ancestor = "Training starts from version" if training.warm_start else "The best former version is"
        base = best.version
        message = f"{ancestor} {base}: {100 * gain:.2f} % fewer nats a frame than {over} already. {best.why}"
    elif champion:
        message = "No former version is surely better than the champion."
    if zoo.recall == "promote" and not may_return:
        message += (
            " None returns without training: training.hyper.normalise_gain corrects gains, and these scores are of "
            "frames as they are."
        )
    return _as_the_site_trains(found.model_copy(update={"base": base, "message": message}), training)


def _as_the_site_trains(found: Recall, training: TrainingSection) -> Recall:
    """Without a warm start there is no ancestor, and the message says so."""
    if training.warm_start:
        return found
    message = f"{found.message} Training starts from scratch: training.warm_start is false."
    return found.model_copy(update={"base": "", "message": message})


def _candidate(
    animal: Animal, report: EvaluationReport, seen: Seen, verdict: Verdict | None, zoo: ZooSection
) -> Candidate:
    over_zero = _gain(report, seen.zero)
    own = _gain(animal.own, animal.own_zero)
    apart = difference(animal.data, seen.data)
    far = distance(animal.data, seen.data)
    worst = max(apart, key=lambda name: apart[name])
    known = f"It was trained on frames with {animal.data.in_words()}."
    if verdict is None:
        fits, why = False, "It is the champion." if report.version else ""
    elif verdict.decision != "promote":
        fits, why = False, f"It is not surely better than the champion. {known}"
    elif animal.data.frames < FEW_FRAMES:
        fits, why = False, f"Its frames are known from {animal.data.frames} only: training has to make sure."
    elif far > zoo.alike:
        fits, why = False, f"{known} These differ, most in {worst}."
    elif animal.gain_corrected:
        fits, why = False, "Its own scores are of frames with corrected gains: training has to make sure."
    elif over_zero[2] < own[1]:
        fits = False
        why = f"It is {100 * over_zero[0]:.2f} % ahead of a constant rate, and was {100 * own[0]:.2f} % ahead on its own frames."
    else:
        fits, why = True, known
    return Candidate(
        version=animal.version, nll=report.nll,
        gain=verdict.gain if verdict else 0.0,
        gain_low=verdict.gain_low if verdict else 0.0,
        gain_high=verdict.gain_high if verdict else 0.0,
        over_zero=over_zero[0], over_zero_low=over_zero[1], over_zero_high=over_zero[2],
        own_over_zero=own[0], own_over_zero_low=own[1], own_over_zero_high=own[2],
        distance=far, differs=apart, data=animal.data, same_form=animal.same_form, fits=fits, why=why,
    )  # fmt: skip


def _gain(report: EvaluationReport, zero: EvaluationReport) -> tuple[float, float, float]:
    """Relative gain over a constant rate on the same frames, with its 95 % interval.

    The mean of so many frames is Gaussian to a percent of its width, and resampling them, for every version in every
    cycle, would take longer than scoring.
    """
    nll_N, zero_N = np.asarray(report.nll_frames), np.asarray(zero.nll_frames)
    gain_N = (zero_N - nll_N) / max(float(np.abs(zero_N).mean()), 1e-12)
    gain, half = float(gain_N.mean()), _Z95 * float(gain_N.std()) / math.sqrt(len(gain_N))
    return gain, gain - half, gain + half


def _animals(
    memory: Memory, parts: CycleParts, data: DataEmbedding, champion: str, *, remember: bool
) -> tuple[list[Animal], dict[str, str]]:
    """The versions worth a score, each with its verified bundle; and those that could not be had, with the reason."""
    config = parts.config
    form = ModelChoice(name=config.model.name, frame_shape=parts.frame_shape, hyper=config.model.hyper)
    told = form_of(config.as_json())
    alike = [entry for entry in memory.entries() if entry.version == champion or entry.form in (told, "")]
    moves = parts.ledger.moves(parts.registry.model, CHAMPION, limit=_WHOLE_HISTORY)
    entries = nearest(alike, data, champion=champion, most=config.zoo.candidates, mistrusted=mistrusted(moves))
    animals: list[Animal] = []
    left_out: dict[str, str] = {}
    if not any(entry.version != champion for entry in entries):
        return animals, left_out
    for entry in entries:
        try:
            animal = _animal(parts, memory, entry, form, remember=remember)
        except FilmloopError as exc:
            left_out[entry.version] = exc.message
            continue
        if animal.same_form or animal.version == champion:
            animals.append(animal)
    return animals, left_out


def _animal(parts: CycleParts, memory: Memory, entry: Entry, form: ModelChoice, *, remember: bool) -> Animal:
    folder = local_bundle(parts.home, parts.registry, entry.version, digest=entry.bundle_digest)
    with suppress(OSError):
        os.utime(folder)  # housekeeping keeps what was used last
    result, reports = TrainResult.read(folder / RESULT), load_evaluation(folder).reports
    if result.model.frame_shape != form.frame_shape:
        raise DataError(f"It takes frames of shape {result.model.frame_shape}, these are {form.frame_shape}.")
    own, own_zero = reports.get("challenger"), reports.get("zero")
    if own is None or own_zero is None or not len(own.nll_frames) == len(own_zero.nll_frames) > 0:
        raise DataError("Its bundle does not tell how good it was on its own frames.")
    data = entry.data
    if data is None or (len(data.share_C), data.energy_bins) != form.frame_shape:
        data = _data_of(parts, folder)
        if remember:
            parts.registry.annotate(entry.version, tags={DATA_TAG: data.model_dump_json()})
            memory.learn(entry.model_copy(update={"data": data}))
    return Animal(
        version=entry.version, folder=folder, data=data, own=own, own_zero=own_zero, same_form=result.model == form,
        gain_corrected=TrainJob.read(folder / JOB).hyper.normalise_gain,
    )  # fmt: skip


def _data_of(parts: CycleParts, bundle: Path) -> DataEmbedding:
    """What a version from before the zoo was trained on: its fresh shards if they are staged still, else its golden frames."""
    from filmloop.staging.reader import ShardReader  # zarr takes .3 to 1 s to load, and hardly any cycle needs it here

    staged = {shard.shard_id: shard for shard in sealed_shards(parts.home.stage)}
    wanted = [ref for ref in TrainJob.read(bundle / JOB).fresh if ref.shard_id in staged]
    counts, frames = [], 0
    for ref in reversed(wanted):
        shard = staged[ref.shard_id]
        if frames < _EMBED_FRAMES and shard.manifest.digest() == ref.manifest_digest:
            part = ShardReader(shard.manifest_path).counts(max(0, shard.manifest.frames - (_EMBED_FRAMES - frames)))
            counts.append(part)
            frames += len(part)
    return embed(np.concatenate(counts) if counts else load_golden(bundle)[0])


def _others(animals: Sequence[Animal], champion: str) -> list[str]:
    return [animal.version for animal in animals if animal.version != champion]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
