"""The newest frames as the zoo looks at them: all of them to describe, the held-out ones to score on.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import HoldoutPolicy
from filmloop.core.errors import DataError
from filmloop.core.holdout import held_out
from filmloop.staging.reader import ShardReader
from filmloop.training.blocks import cut_into_blocks, decode
from filmloop.training.holdout import Holdout
from filmloop.zoo.embedding import embed
from filmloop.zoo.seen import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestFrames:
    """The newest frames.

    Attributes:
        seen: What they look like.
        holdout: The newest held-out ones, as the trainer's evaluation has them.
    """

    seen: Seen
    holdout: Holdout

    def __len__(self) -> int:
        """Number of held-out frames, N."""
        return len(self.holdout)


def newest_frames(manifests: Sequence[Path], policy: HoldoutPolicy, *, most: int) -> NewestFrames:
    """Read the newest frames of the shards with these manifests until `most` held-out ones are found, or there are no more.

    Raises:
        DataError: a shard is damaged, or not one frame is held out.
    """
    counts, runs, ids, weights, alive, found = [], [], [], [], [], 0
    for number, manifest in enumerate(reversed(manifests)):
        if found >= most:
            break  # opening a shard takes longer than reading a block of it
        reader = ShardReader(manifest)
        # The trainer's blocks, because it looks for dead channels in each.
        for block in reversed(cut_into_blocks(reader, number, held_out(reader.pulse_id_N, policy.permille))):
            if found >= most:
                break
            decoded, frames = decode(block, labelled=False), block.stop - block.start
            counts.append(decoded.counts_NCE)
            runs.append(np.full(frames, reader.manifest.run_number, np.int64))
            ids.append(reader.pulse_id_N[block.start : block.stop])
            weights.append(reader.weight_N[block.start : block.stop])
            alive.append(np.broadcast_to(decoded.alive_C, (frames, len(decoded.alive_C))))
            found += int(block.held_N.sum())
    if not found:
        raise DataError(
            f"None of {sum(map(len, ids))} frames is held out, so no model can be scored on them.",
            hint="Wait for more shards, or raise training.holdout.permille.",
        )
    return pick_held_out(
        np.concatenate(counts), np.concatenate(runs), np.concatenate(ids), policy, most=most,
        weight_N=np.concatenate(weights), alive_NC=np.concatenate(alive),
    )  # fmt: skip


def pick_held_out(
    counts_NCE: npt.NDArray[np.uint8],
    run_N: npt.NDArray[np.int64],
    pulse_id_N: npt.NDArray[np.uint64],
    policy: HoldoutPolicy,
    *,
    most: int,
    weight_N: npt.NDArray[np.float32] | None = None,
    alive_NC: npt.NDArray[np.bool_] | None = None,
) -> NewestFrames:
    """Describe these frames, and split the newest `most` held-out ones of them.

    Raises:
        DataError: a sampling weight is not a positive number.
    """
    is_held_N = held_out(pulse_id_N, policy.permille)
    held = np.flatnonzero(is_held_N)
    held = held[np.lexsort((pulse_id_N[held], run_N[held]))][-most:]
    holdout = Holdout.of(
        counts_NCE[held],
        run_N[held],
        pulse_id_N[held],
        policy,
        weight_N=None if weight_N is None else weight_N[held],
        alive_NC=None if alive_NC is None else alive_NC[held],
    )
    others_NCE = counts_NCE[~is_held_N] if not is_held_N.all() else counts_NCE
    mean = np.float32(others_NCE.mean(dtype=np.float64))
    zero_N = holdout.scores(lambda other_NCE: np.full(other_NCE.shape, mean, np.float32))
    seen = Seen(data=embed(counts_NCE), zero=holdout.report("zero", zero_N), frames=len(holdout))
    return NewestFrames(seen=seen, holdout=holdout)
