"""Blocks of frames and sealed shards for tests.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, FileDigest
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard
from filmloop.staging.schema import Layout
from filmloop.staging.writer import ShardWriter


def example_block(
    frames: int,
    *,
    first_pulse_id: int = 0,
    frame_shape: tuple[int, int] = (4, 16),
    run_number: int = 1,
    labelled: bool = False,
    seed: int = 1,
) -> FrameBlock:
    """Frames with Poisson counts (mean 0.3 a bin) that depend on the seed and the pulse ids alone."""
    pulse_id_N = np.arange(first_pulse_id, first_pulse_id + frames, dtype=np.uint64)
    counts = [
        np.random.default_rng([seed, run_number, int(pulse_id)]).poisson(0.3, frame_shape) for pulse_id in pulse_id_N
    ]
    counts_NCE = np.array(counts, np.uint8).reshape(frames, *frame_shape)
    return FrameBlock(
        run_number=run_number,
        pulse_id_N=pulse_id_N,
        counts_NCE=counts_NCE,
        flags_N=(pulse_id_N % np.uint64(2)).astype(np.uint8),
        label_NCE=(counts_NCE * np.float32(0.5)) if labelled else None,
    )


def write_shard(
    stage: Path,
    block: FrameBlock,
    *,
    stream: str = "test",
    seq: int = 0,
    frames_per_chunk: int = 16,
    version: int = 0,
    accounting: Accounting | None = None,
    layout: Layout = "dense",
    weight_N: npt.NDArray[np.float32] | None = None,
    frames_dark: int = 0,
) -> SealedShard:
    """Seal `block` as one shard, inferred by `version`, with the pulse id modulo 7 as its sort key."""
    writer = ShardWriter(
        stage,
        site="testsite",
        stream=stream,
        run_number=block.run_number,
        seq=seq,
        frame_shape=(block.counts_NCE.shape[1], block.counts_NCE.shape[2]),
        labelled=block.label_NCE is not None,
        section=StagingSection(frames_per_shard=len(block), frames_per_chunk=frames_per_chunk, layout=layout),
    )
    writer.append(
        block,
        version_N=np.full(len(block), version, np.uint32),
        phase_N=(block.pulse_id_N % np.uint64(7)).astype(np.float32),
        weight_N=weight_N,
    )
    writer.frames_dark = frames_dark
    return writer.seal(accounting=accounting or Accounting())


def reseal(shard: SealedShard) -> None:
    """Have the manifest fit the files as they are now: a change that no hash tells of."""
    files = sorted(path for path in shard.group_path.rglob("*") if path.is_file())
    digests = tuple(FileDigest.of(path, shard.group_path.parent) for path in files)
    shard.manifest.model_copy(update={"files": digests}).write(shard.manifest_path)
