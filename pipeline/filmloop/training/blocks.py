"""Blocks: runs of neighbouring frames of one shard that are read and decoded together.

A frame alone costs as much as its whole chunk, 50 to 260 times as much as within a block. The block is a chunk of the shard, or as many small
ones as make a thousand frames, so that no chunk is decoded for two blocks.
Shape suffixes: N frames, C channels, E energy bins, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.staging.reader import ShardReader

BLOCK_FRAMES = 1024
DEAD_BELOW_HITS = 100.0
"""A channel without a hit is dead where the median channel of the block has so many; by chance it is so once in e^100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Neighbouring frames of one shard.

    Attributes:
        reader: Of the shard.
        shard: Number of the shard in the job, fresh ones first.
        start: First frame.
        stop: Behind the last one.
        held_N: bool, which of them are never trained on.
    """

    reader: ShardReader
    shard: int
    start: int
    stop: int
    held_N: npt.NDArray[np.bool_]

    @property
    def train_frames(self) -> int:
        """Frames to train on."""
        return int(len(self.held_N) - self.held_N.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The frames of a block.

    Attributes:
        counts_NCE: uint8, all of them, held out or not.
        label_NCE: float16 as stored, where labels are wanted.
        hits_C: Sum of the counts of each channel.
        alive_C: bool, false for channels that are dead in this block.
    """

    counts_NCE: npt.NDArray[np.uint8]
    label_NCE: npt.NDArray[np.float16] | None
    hits_C: npt.NDArray[np.float64]
    alive_C: npt.NDArray[np.bool_]


def cut_into_blocks(reader: ShardReader, shard: int, held_N: npt.NDArray[np.bool_]) -> list[Block]:
    """All blocks of a shard, in its order."""
    size = math.ceil(BLOCK_FRAMES / reader.chunk_frames) * reader.chunk_frames
    return [
        Block(
            reader=reader,
            shard=shard,
            start=start,
            stop=min(start + size, reader.frames),
            held_N=held_N[start : start + size],
        )
        for start in range(0, reader.frames, size)
    ]


def decode(block: Block, *, labelled: bool) -> Decoded:
    """Read a block from its shard.

    Raises:
        DataError: the bytes are damaged.
    """
    counts_NCE = block.reader.counts(block.start, block.stop)
    hits_C = counts_NCE.sum(axis=(0, 2), dtype=np.int64).astype(np.float64)
    return Decoded(
        counts_NCE=counts_NCE,
        label_NCE=block.reader.labels(block.start, block.stop).astype(np.float16) if labelled else None,
        hits_C=hits_C,
        alive_C=(hits_C > 0) | (np.median(hits_C) < DEAD_BELOW_HITS),
    )


def relative_gain(hits_SC: npt.NDArray[np.float64], reference_C: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Gain of each channel in each shard, relative to a reference: the median channel that has hits in both has gain 1.

    Only what channels differ by is taken for gain: frames of a brighter beam have more hits in every channel, and
    that is for the network to see.

    Args:
        hits_SC: Hits a frame of each shard and channel.
        reference_C: Those of the reference.
    """
    gain_SC = np.ones(hits_SC.shape, np.float32)
    for gain_C, hits_C in zip(gain_SC, hits_SC, strict=True):
        known = (hits_C > 0) & (reference_C > 0)
        if known.any():
            ratio = hits_C[known] / reference_C[known]
            gain_C[known] = ratio / np.median(ratio)
    return gain_SC
