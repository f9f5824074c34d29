"""From the job's shards to the frames held out for ever, and to the pool of those to train on.

Pulse ids alone say which frames are held out, so only the blocks are decoded here that hold such frames, and a few of each
shard for what has to be known before the first step: is anything there, which unit labels have, how the channels'
gains differ. The pool keeps them if it can, and decodes the others while training runs.
Shape suffixes: N frames, C channels, E energy bins, S shards, F all frames to train on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from filmloop.core.documents import HoldoutPolicy, ShardRef, TrainJob
from filmloop.core.errors import DataError, TrainingError, VerificationError
from filmloop.core.holdout import held_out
from filmloop.core.poisson import thin_by_hash
from filmloop.core.weights import mean_one
from filmloop.staging.reader import ShardReader
from filmloop.training.blocks import Block, Decoded, cut_into_blocks, decode, relative_gain
from filmloop.training.pool import FramePool

MIN_TRAIN_FRAMES = 32
MIN_HELD_OUT_FRAMES = 10
FEW_HELD_OUT_FRAMES = 200
"""Fewer held-out fresh frames than this, and replayed ones are scored too: the gate needs 200 by default."""
SAMPLE_FRAMES = 4096
"""Training frames that the baselines are tuned on, the newest ones."""
_SURVEY_BLOCKS = 2
"""Blocks of each shard that are looked at before training: 2,000 frames tell a channel's gain to some 0.3 %."""
_THREADS = 4

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
        weight_N: float32, how many frames each stands for, their mean 1; None if all stand for as many.
        alive_NC: bool, false in dead channels, which are not scored; None if there is none.
        gain_NC: float32, relative gain of each channel; None where it is not corrected.
    """

    run_N: npt.NDArray[np.int64]
    pulse_id_N: npt.NDArray[np.uint64]
    counts_NCE: npt.NDArray[np.uint8]
    kept_NCE: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float16] | None
    policy: HoldoutPolicy
    weight_N: npt.NDArray[np.float32] | None = None
    alive_NC: npt.NDArray[np.bool_] | None = None
    gain_NC: npt.NDArray[np.float32] | None = None

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
            weight_N=None if self.weight_N is None else self.weight_N[part],
            alive_NC=None if self.alive_NC is None else self.alive_NC[part],
            gain_NC=None if self.gain_NC is None else self.gain_NC[part],
        )

    def model_input(self) -> npt.NDArray[np.float32]:
        """What a model is given: the kept part, scaled to the mean of the whole frame, at the reference's gain."""
        input_NCE = self.kept_NCE.astype(np.float32) / np.float32(self.policy.keep)
        return input_NCE if self.gain_NC is None else input_NCE / self.gain_NC[..., None]

    def expected(self, rate_NCE: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the scored part is by a model's rates; 0 in dead channels, which have no counts either."""
        expected_NCE = rate_NCE * np.float32(1.0 - self.policy.keep)
        for factor_NC in (self.gain_NC, self.alive_NC):
            if factor_NC is not None:
                expected_NCE = expected_NCE * factor_NC[..., None]
        return expected_NCE

    def scored_part(self) -> npt.NDArray[np.uint8]:
        """What `expected` has to predict."""
        return self.counts_NCE - self.kept_NCE

    def weighted(self, score_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Scores times sampling weights: their plain mean is that of all frames, staged or not."""
        return score_N if self.weight_N is None else score_N * self.weight_N

    def digest(self) -> str:
        """SHA-256 over which frames these are and how they are split: equal digests, comparable scores."""
        sha = hashlib.sha256()
        sha.update(np.ascontiguousarray(self.run_N, dtype="<i8").tobytes())
        sha.update(np.ascontiguousarray(self.pulse_id_N, dtype="<u8").tobytes())
        sha.update(f"{self.policy.keep!r} {self.policy.seed}".encode())
        for name, extra in (("weight", self.weight_N), ("alive", self.alive_NC), ("gain", self.gain_NC)):
            if extra is not None:
                sha.update(name.encode() + np.ascontiguousarray(extra).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """All that a job trains and scores on.

    Attributes:
        pool: The frames to train on.
        sample_NCE: uint8, the newest of them, `SAMPLE_FRAMES` at most.
        label_gain: Factor that brought the labels to units of counts; 1.0 without labels.
        holdout: The frames to score on.
        lineage: shard_id -> manifest digest of every shard read.
        channel_hits: Mean hits a frame of each channel, over all shards: what relative gains are relative to.
    """

    pool: FramePool
    sample_NCE: npt.NDArray[np.uint8]
    label_gain: float
    holdout: Holdout
    lineage: dict[str, str]
    channel_hits: tuple[float, ...]

    @property
    def frames(self) -> int:
        """Number of frames to train on."""
        return self.pool.frames

    @property
    def bins(self) -> int:
        """Numbers in a frame."""
        return int(np.prod(self.holdout.counts_NCE.shape[1:]))


def load_data(job: TrainJob, device: torch.device | None = None) -> TrainingData:
    """Open every shard of the job, checked against its hashes and against the manifest digest the job names.

    Args:
        job: Names the shards.
        device: Where the frames to train on are to lie; the CPU by default.

    Raises:
        DataError: a shard is damaged, not the one meant, of another shape, or without the labels needed; too few frames.
        TrainingError: no frame to train on has a single count, or the labels are no rates.
    """
    labelled = job.hyper.mode == "labelled"
    with ThreadPoolExecutor(_threads()) as threads:
        readers = list(threads.map(lambda ref: _open(ref, job), (*job.fresh, *job.replay)))
        held = [held_out(reader.pulse_id_N, job.holdout.permille) for reader in readers]
        blocks = [
            block
            for shard, (reader, held_N) in enumerate(zip(readers, held, strict=True))
            for block in cut_into_blocks(reader, shard, held_N)
        ]
        frames = sum(block.train_frames for block in blocks)
        if frames < MIN_TRAIN_FRAMES:
            raise DataError(
                f"Job {job.job_id} has {frames} frames to train on; at least {MIN_TRAIN_FRAMES} are needed.",
                hint="Wait for more shards (`filmloop shards list`) or raise training.min_frames.",
                ids={"job_id": job.job_id},
            )
        chosen = _choose_held_out(readers, held, job)
        wanted = sorted({*chosen.blocks(blocks), *_survey(blocks)})
        decoded = dict(
            zip(wanted, threads.map(lambda number: decode(blocks[number], labelled=labelled), wanted), strict=True)
        )
    is_fresh = [block.shard < len(job.fresh) for block in blocks]
    trained = [number for number, block in enumerate(blocks) if block.train_frames]
    pool = FramePool(
        [blocks[number] for number in trained if is_fresh[number]],
        [blocks[number] for number in trained if not is_fresh[number]],
        job.model.frame_shape,
        labelled=labelled,
        memory_bytes=job.hyper.loader_mb * 1e6,
        seed=job.seed,
        device=device or torch.device("cpu"),
    )
    hits_SC, reference_C = _channel_hits(blocks, decoded, len(readers))
    if not reference_C.any():
        raise TrainingError(
            f"None of the {frames} frames to train on has a count.",
            hint="Was the beam off? `filmloop shards list` shows which shards these are.",
            ids={"job_id": job.job_id},
        )
    gain_SC = relative_gain(hits_SC, reference_C) if job.hyper.normalise_gain else None
    label_gain = _label_gain(blocks, decoded) if labelled else 1.0
    holdout = chosen.holdout(blocks, decoded, gain_SC, label_gain, job)
    pool.gain_SC, pool.label_gain = gain_SC, label_gain
    pool.weight_F = _weights(readers, held, len(job.fresh))
    numbers = {number: place for place, number in enumerate(trained)}
    for number in wanted:
        if number in numbers:
            pool.offer(numbers[number], decoded[number])
    return TrainingData(
        pool=pool,
        sample_NCE=_newest(blocks, decoded, [number for number in wanted if is_fresh[number]] or wanted),
        label_gain=label_gain,
        holdout=holdout,
        lineage={reader.manifest.shard_id: reader.manifest_digest for reader in readers},
        channel_hits=tuple(float(hits) for hits in reference_C),
    )


def _threads() -> int:
    """Threads to read with: this rank's part of the processors, but no more than a disk has use for."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(_THREADS, len(os.sched_getaffinity(0)) // ranks_here))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """Which held-out frames are scored, in the order of (run, pulse id), before a block is decoded.

    Attributes:
        shard_N: Number of the shard of each.
        frame_N: Number of the frame within its shard.
        run_N: int64.
        pulse_id_N: uint64.
        weight_N: float32, as staged.
    """

    shard_N: npt.NDArray[np.int64]
    frame_N: npt.NDArray[np.int64]
    run_N: npt.NDArray[np.int64]
    pulse_id_N: npt.NDArray[np.uint64]
    weight_N: npt.NDArray[np.float32]

    def blocks(self, blocks: Sequence[Block]) -> list[int]:
        """Numbers of the blocks that they lie in."""
        return [number for number, block in enumerate(blocks) if self._in(block).any()]

    def _in(self, block: Block) -> npt.NDArray[np.bool_]:
        is_there = (self.shard_N == block.shard) & (self.frame_N >= block.start) & (self.frame_N < block.stop)
        return np.asarray(is_there)

    def holdout(
        self,
        blocks: Sequence[Block],
        decoded: dict[int, Decoded],
        gain_SC: npt.NDArray[np.float32] | None,
        label_gain: float,
        job: TrainJob,
    ) -> Holdout:
        """Take the frames from the decoded blocks."""
        shape = (len(self.pulse_id_N), *job.model.frame_shape)
        counts_NCE, alive_NC = np.zeros(shape, np.uint8), np.ones(shape[:2], np.bool_)
        label_NCE = np.zeros(shape, np.float16) if job.hyper.mode == "labelled" else None
        for number, block in enumerate(blocks):
            is_there = self._in(block)
            if not is_there.any():
                continue
            within = self.frame_N[is_there] - block.start
            counts_NCE[is_there] = decoded[number].counts_NCE[within]
            alive_NC[is_there] = decoded[number].alive_C
            stored_NCE = decoded[number].label_NCE
            if label_NCE is not None and stored_NCE is not None:
                label_NCE[is_there] = stored_NCE[within] * np.float16(label_gain)
        return Holdout(
            run_N=self.run_N,
            pulse_id_N=self.pulse_id_N,
            counts_NCE=counts_NCE,
            kept_NCE=thin_by_hash(counts_NCE, self.pulse_id_N, keep=job.holdout.keep, seed=job.holdout.seed),
            label_NCE=label_NCE,
            policy=job.holdout,
            weight_N=mean_one(self.weight_N),
            alive_NC=None if alive_NC.all() else alive_NC,
            gain_NC=None if gain_SC is None else gain_SC[self.shard_N],
        )


def _choose_held_out(readers: list[ShardReader], held: list[npt.NDArray[np.bool_]], job: TrainJob) -> _Chosen:
    """The newest held-out frames; fresh ones only, where there are enough."""
    frames_S = [int(mask.sum()) for mask in held]
    shard_N = np.repeat(np.arange(len(readers)), frames_S)
    frame_N = np.concatenate([np.flatnonzero(mask) for mask in held])
    run_N = np.repeat(np.array([reader.manifest.run_number for reader in readers], np.int64), frames_S)
    pulse_id_N = np.concatenate([reader.pulse_id_N[mask] for reader, mask in zip(readers, held, strict=True)])
    weight_N = np.concatenate([reader.weight_N[mask] for reader, mask in zip(readers, held, strict=True)])
    candidates = np.arange(len(pulse_id_N))
    is_fresh_N = shard_N < len(job.fresh)
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
    return _Chosen(
        shard_N=shard_N[chosen],
        frame_N=frame_N[chosen],
        run_N=run_N[chosen],
        pulse_id_N=pulse_id_N[chosen],
        weight_N=weight_N[chosen],
    )


def _survey(blocks: Sequence[Block]) -> set[int]:
    """Numbers of some blocks of each shard, spread over it, its last one among them."""
    of_shard: dict[int, list[int]] = {}
    for number, block in enumerate(blocks):
        of_shard.setdefault(block.shard, []).append(number)
    return {
        numbers[place]
        for numbers in of_shard.values()
        for place in np.linspace(len(numbers) - 1, 0, min(_SURVEY_BLOCKS, len(numbers))).round().astype(int)
    }


def _channel_hits(
    blocks: Sequence[Block], decoded: dict[int, Decoded], shards: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Hits a frame of each channel: by shard, and over all shards together; dead channels do not count."""
    channels = len(next(iter(decoded.values())).hits_C)
    hits_SC, frames_SC = np.zeros((shards, channels)), np.zeros((shards, channels))
    for number, block_decoded in decoded.items():
        shard = blocks[number].shard
        hits_SC[shard] += block_decoded.hits_C
        frames_SC[shard] += len(block_decoded.counts_NCE) * block_decoded.alive_C
    return hits_SC / np.maximum(frames_SC, 1), hits_SC.sum(axis=0) / np.maximum(frames_SC.sum(axis=0), 1)


def _weights(
    readers: list[ShardReader], held: list[npt.NDArray[np.bool_]], fresh: int
) -> npt.NDArray[np.float32] | None:
    """Sampling weight of every frame to train on, its mean 1 over the fresh and over the replayed ones."""
    parts = []
    for of_set in (slice(0, fresh), slice(fresh, None)):
        weights = [reader.weight_N[~mask] for reader, mask in zip(readers[of_set], held[of_set], strict=True)]
        weight_N = np.concatenate(weights) if weights else np.empty(0, np.float32)
        normalised_N = mean_one(weight_N)
        parts.append(np.ones(len(weight_N), np.float32) if normalised_N is None else normalised_N)
    weight_F = np.concatenate(parts)
    return None if (weight_F == 1.0).all() else weight_F


def _newest(blocks: Sequence[Block], decoded: dict[int, Decoded], numbers: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The last training frames of these blocks."""
    parts: list[npt.NDArray[np.uint8]] = []
    for number in reversed(numbers):
        if sum(map(len, parts)) < SAMPLE_FRAMES:
            parts.insert(0, decoded[number].counts_NCE[~blocks[number].held_N])
    return np.concatenate(parts)[-SAMPLE_FRAMES:]


def _label_gain(blocks: Sequence[Block], decoded: dict[int, Decoded]) -> float:
    """The factor with which the labels add up to the counts: published labels have a unit of their own.

    The likelihood, the gate and a warm start from unlabelled training all read rates as expected counts.
    """
    total = counted = 0.0
    for number, block in decoded.items():
        if block.label_NCE is None:
            continue
        bad_N = np.flatnonzero(~np.isfinite(block.label_NCE).all(axis=(1, 2)))
        if len(bad_N):
            reader, frame = blocks[number].reader, blocks[number].start + int(bad_N[0])
            raise TrainingError(
                f"Labels are not numbers in {len(bad_N)} frames of shard {reader.manifest.shard_id}, "
                f"the first of them pulse {reader.pulse_id_N[frame]}.",
                hint="Leave the shard out, or train with mode 'thinning', which needs no labels.",
                ids={"shard_id": reader.manifest.shard_id},
            )
        total += float(block.label_NCE.sum(dtype=np.float64))
        counted += float(block.hits_C.sum())
    if total <= 0:
        raise TrainingError(
            f"The labels add up to {total}, so they cannot be the rates of the frames.",
            hint="`filmloop shards verify` checks the data; or train with mode 'thinning', which needs no labels.",
        )
    gain = counted / total
    _log.info("labels are multiplied by %.4g to be expected counts", gain)
    return gain
