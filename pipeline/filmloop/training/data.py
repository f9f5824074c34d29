"""From the job's shards to the frames to score on, and to the pool of those to train on.

Pulse ids alone say which frames are held out, so only the blocks are decoded here that hold such frames, and a few of each
shard for what has to be known before the first step: is anything there, which unit labels have, how the channels'
gains differ. The pool keeps them if it can, and decodes the others while training runs.
Shape suffixes: N frames, C channels, E energy bins, S shards, F all frames to train on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from filmloop.core.counted import counted
from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.errors import DataError, TrainingError, VerificationError
from filmloop.core.holdout import held_out
from filmloop.core.weights import mean_one
from filmloop.staging.reader import ShardReader
from filmloop.training.blocks import Block, Decoded, cut_into_blocks, decode, relative_gain
from filmloop.training.holdout import Holdout, choose_held_out
from filmloop.training.pool import FramePool

MIN_TRAIN_FRAMES = 32
SAMPLE_FRAMES = 4096
"""Training frames that the baselines are tuned on, the newest ones."""
_SURVEY_BLOCKS = 2
"""Blocks of each shard that are looked at before training: 2,000 frames tell a channel's gain to some 0.3 %."""
_THREADS = 4

_log = logging.getLogger(__name__)


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
                f"Job {job.job_id} has {counted(frames, 'frame')} to train on; at least {MIN_TRAIN_FRAMES} are needed.",
                hint="Wait for more shards (`filmloop shards list`) or raise training.min_frames.",
                ids={"job_id": job.job_id},
            )
        chosen = choose_held_out(readers, held, job)
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
    total = hits = 0.0
    for number, block in decoded.items():
        if block.label_NCE is None:
            continue
        bad_N = np.flatnonzero(~np.isfinite(block.label_NCE).all(axis=(1, 2)))
        if len(bad_N):
            reader, frame = blocks[number].reader, blocks[number].start + int(bad_N[0])
            raise TrainingError(
                f"Labels are not numbers in {counted(len(bad_N), 'frame')} of shard {reader.manifest.shard_id}, "
                f"the first of them pulse {reader.pulse_id_N[frame]}.",
                hint="Leave the shard out, or train with mode 'thinning', which needs no labels.",
                ids={"shard_id": reader.manifest.shard_id},
            )
        total += float(block.label_NCE.sum(dtype=np.float64))
        hits += float(block.hits_C.sum())
    if total <= 0:
        raise TrainingError(
            f"The labels add up to {total}, so they cannot be the rates of the frames.",
            hint="`filmloop shards verify` checks the data; or train with mode 'thinning', which needs no labels.",
        )
    gain = hits / total
    _log.info("labels are multiplied by %.4g to be expected counts", gain)
    return gain
