"""From the job's shards to frames in memory: those to train on, and those held out for ever.

60,000 frames of 16 x 128 counts are 123 MB as uint8; they are widened a batch at a time.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import HoldoutPolicy, ShardRef, TrainJob
from filmloop.core.errors import DataError, TrainingError, VerificationError
from filmloop.core.holdout import held_out
from filmloop.core.poisson import thin_by_hash
from filmloop.staging.reader import ShardReader

MIN_TRAIN_FRAMES = 32
MIN_HELD_OUT_FRAMES = 10
FEW_HELD_OUT_FRAMES = 200
"""Fewer held-out fresh frames than this, and replayed ones are scored too: the gate needs 200 by default."""
_READ_FRAMES = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Frames that no model trains on, in the order of (run, pulse id), each split into a seen and a scored part.

    Attributes:
        run_N: int64.
        pulse_id_N: uint64.
        counts_NCE: uint8, the whole frames.
        kept_NCE: uint8, what a model sees; `counts_NCE - kept_NCE` is what it is scored on.
        label_NCE: float16 in units of counts, in labelled mode.
        policy: How they were chosen and split.
    """

    run_N: npt.NDArray[np.int64]
    pulse_id_N: npt.NDArray[np.uint64]
    counts_NCE: npt.NDArray[np.uint8]
    kept_NCE: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float16] | None
    policy: HoldoutPolicy

    def __len__(self) -> int:
        """Number of frames, N."""
        return len(self.pulse_id_N)

    def __getitem__(self, part: slice) -> Holdout:
        """The frames of a slice."""
        return Holdout(
            run_N=self.run_N[part],
            pulse_id_N=self.pulse_id_N[part],
            counts_NCE=self.counts_NCE[part],
            kept_NCE=self.kept_NCE[part],
            label_NCE=None if self.label_NCE is None else self.label_NCE[part],
            policy=self.policy,
        )

    def model_input(self) -> npt.NDArray[np.float32]:
        """What a model is given: the kept part, scaled to the mean of the whole frame."""
        return self.kept_NCE.astype(np.float32) / np.float32(self.policy.keep)

    def scored_part(self) -> npt.NDArray[np.uint8]:
        """What its rate times `1 - keep` has to predict."""
        return self.counts_NCE - self.kept_NCE

    def digest(self) -> str:
        """SHA-256 over which frames these are and how they are split: equal digests, comparable scores."""
        sha = hashlib.sha256()
        sha.update(np.ascontiguousarray(self.run_N, dtype="<i8").tobytes())
        sha.update(np.ascontiguousarray(self.pulse_id_N, dtype="<u8").tobytes())
        sha.update(f"{self.policy.keep!r} {self.policy.seed}".encode())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """All that a job trains and scores on.

    Attributes:
        counts_NCE: uint8, the frames to train on.
        label_NCE: float16 in units of counts, in labelled mode.
        label_gain: Factor that brought the labels to units of counts; 1.0 without labels.
        holdout: The frames to score on.
        lineage: shard_id -> manifest digest of every shard read.
    """

    counts_NCE: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float16] | None
    label_gain: float
    holdout: Holdout
    lineage: dict[str, str]


def load_data(job: TrainJob) -> TrainingData:
    """Read every shard of the job, checked against its hashes and against the manifest digest the job names.

    Raises:
        DataError: a shard is damaged, not the one meant, of another shape, or without the labels needed; too few frames.
        TrainingError: no frame to train on has a single count, or the labels are no rates.
    """
    readers = [_open(ref, job) for ref in (*job.fresh, *job.replay)]
    masks = [held_out(reader.pulse_id_N, job.holdout.permille) for reader in readers]
    train, held = _deal(readers, masks, job)
    if len(train.counts_NCE) < MIN_TRAIN_FRAMES:
        raise DataError(
            f"Job {job.job_id} has {len(train.counts_NCE)} frames to train on; at least {MIN_TRAIN_FRAMES} are needed.",
            hint="Wait for more shards (`filmloop shards list`) or raise training.min_frames.",
            ids={"job_id": job.job_id},
        )
    if not train.counts_NCE.any():
        raise TrainingError(
            f"None of the {len(train.counts_NCE)} frames to train on has a count.",
            hint="Was the beam off? `filmloop shards list` shows which shards these are.",
            ids={"job_id": job.job_id},
        )
    frames_N = [int(mask.sum()) for mask in masks]
    holdout = _choose_holdout(
        held,
        run_N=np.repeat(np.array([reader.manifest.run_number for reader in readers], np.int64), frames_N),
        pulse_id_N=np.concatenate([reader.pulse_id_N[mask] for reader, mask in zip(readers, masks, strict=True)]),
        is_fresh_N=np.repeat(np.arange(len(readers)) < len(job.fresh), frames_N),
        job=job,
    )
    gain = 1.0
    if train.label_NCE is not None and holdout.label_NCE is not None:
        gain = _label_gain(train.label_NCE, train.counts_NCE)
        train.label_NCE *= np.float16(gain)
        holdout = replace(holdout, label_NCE=holdout.label_NCE * np.float16(gain))
    return TrainingData(
        counts_NCE=train.counts_NCE,
        label_NCE=train.label_NCE,
        label_gain=gain,
        holdout=holdout,
        lineage={reader.manifest.shard_id: reader.manifest_digest for reader in readers},
    )


def _open(ref: ShardRef, job: TrainJob) -> ShardReader:
    reader = ShardReader(Path(ref.manifest_path), check="hashes")
    ids = {"shard_id": ref.shard_id, "path": ref.manifest_path, "job_id": job.job_id}
    if reader.manifest_digest != ref.manifest_digest:
        raise VerificationError(
            f"Shard {ref.shard_id} is not the one that the job means: manifest digest "
            f"{reader.manifest_digest[:12]}, expected {ref.manifest_digest[:12]}.",
            hint="Someone replaced it after it was shipped. `filmloop shards verify` checks the edge's copy.",
            ids=ids,
        )
    if reader.manifest.frame_shape != job.model.frame_shape:
        raise DataError(
            f"Shard {ref.shard_id} has frames of shape {reader.manifest.frame_shape}, "
            f"the job trains on {job.model.frame_shape}.",
            hint="Set [frame] channels and energy_bins of the site file to those of the data.",
            ids=ids,
        )
    if job.hyper.mode == "labelled" and not reader.manifest.labelled:
        raise DataError(
            f"Shard {ref.shard_id} has no labels, but training.hyper.mode is 'labelled'.",
            hint="Set use_labels (replay) or labelled (simulator) of [source], or train with mode 'thinning'.",
            ids=ids,
        )
    return reader


@dataclass(slots=True, kw_only=True)
class _Pile:
    """Arrays allocated once and filled shard by shard: joining lists would hold every frame twice."""

    counts_NCE: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float16] | None
    filled: int = 0

    @classmethod
    def of(cls, frames: int, job: TrainJob) -> _Pile:
        shape = (frames, *job.model.frame_shape)
        labels = np.empty(shape, np.float16) if job.hyper.mode == "labelled" else None
        return cls(counts_NCE=np.empty(shape, np.uint8), label_NCE=labels)

    def add(self, counts_NCE: npt.NDArray[np.uint8], label_NCE: npt.NDArray[np.float32] | None) -> None:
        end = self.filled + len(counts_NCE)
        self.counts_NCE[self.filled : end] = counts_NCE
        if self.label_NCE is not None and label_NCE is not None:
            self.label_NCE[self.filled : end] = label_NCE
        self.filled = end


def _deal(readers: list[ShardReader], masks: list[npt.NDArray[np.bool_]], job: TrainJob) -> tuple[_Pile, _Pile]:
    """Decode every shard, a few chunks at a time: frames to train on, and held-out ones, both in the shards' order."""
    total, held_total = sum(len(mask) for mask in masks), sum(int(mask.sum()) for mask in masks)
    train, held = _Pile.of(total - held_total, job), _Pile.of(held_total, job)
    for reader, mask in zip(readers, masks, strict=True):
        for start in range(0, len(mask), _READ_FRAMES):
            is_held = mask[start : start + _READ_FRAMES]
            stop = start + len(is_held)
            counts_NCE = reader.counts(start, stop)
            label_NCE = reader.labels(start, stop) if job.hyper.mode == "labelled" else None
            train.add(counts_NCE[~is_held], None if label_NCE is None else label_NCE[~is_held])
            held.add(counts_NCE[is_held], None if label_NCE is None else label_NCE[is_held])
    return train, held


def _choose_holdout(
    held: _Pile,
    *,
    run_N: npt.NDArray[np.int64],
    pulse_id_N: npt.NDArray[np.uint64],
    is_fresh_N: npt.NDArray[np.bool_],
    job: TrainJob,
) -> Holdout:
    candidates = np.arange(len(pulse_id_N))
    if is_fresh_N.sum() >= FEW_HELD_OUT_FRAMES:
        candidates = candidates[is_fresh_N]
    newest = np.lexsort((pulse_id_N[candidates], run_N[candidates]))[-job.holdout.max_frames :]
    chosen = candidates[newest]
    if len(chosen) < MIN_HELD_OUT_FRAMES:
        raise DataError(
            f"Job {job.job_id} has {len(chosen)} held-out frames; at least {MIN_HELD_OUT_FRAMES} are needed to judge.",
            hint="Wait for more shards, or raise training.holdout.permille.",
            ids={"job_id": job.job_id},
        )
    counts_NCE, pulse_id_N = held.counts_NCE[chosen], pulse_id_N[chosen]
    return Holdout(
        run_N=run_N[chosen],
        pulse_id_N=pulse_id_N,
        counts_NCE=counts_NCE,
        kept_NCE=thin_by_hash(counts_NCE, pulse_id_N, keep=job.holdout.keep, seed=job.holdout.seed),
        label_NCE=None if held.label_NCE is None else held.label_NCE[chosen],
        policy=job.holdout,
    )


def _label_gain(label_NCE: npt.NDArray[np.float16], counts_NCE: npt.NDArray[np.uint8]) -> float:
    """The factor with which the labels add up to the counts: published labels have a unit of their own.

    The likelihood, the gate and a warm start from unlabelled training all read rates as expected counts.
    """
    total = float(label_NCE.sum(dtype=np.float64))
    if not np.isfinite(total) or total <= 0:
        raise TrainingError(
            f"The labels add up to {total}, so they cannot be the rates of the frames.",
            hint="`filmloop shards verify` checks the data; or train with mode 'thinning', which needs no labels.",
        )
    gain = float(counts_NCE.sum(dtype=np.float64)) / total
    _log.info("labels are multiplied by %.4g to be expected counts", gain)
    return gain
