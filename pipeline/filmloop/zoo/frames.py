"""The newest frames as the zoo looks at them: all of them to describe, the held-out ones to score on.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import EvaluationReport, HoldoutPolicy
from filmloop.core.errors import DataError
from filmloop.core.holdout import held_out
from filmloop.core.poisson import bootstrap_mean, poisson_nll, thin_by_hash
from filmloop.core.weights import mean_one
from filmloop.staging.catalog import SealedShard
from filmloop.staging.reader import ShardReader
from filmloop.training.blocks import cut_into_blocks, decode
from filmloop.zoo.embedding import DataEmbedding, embed


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestFrames:
    """Held-out frames in the order of (run, pulse id), thinned, weighted and masked as in the trainer's evaluation.

    Attributes:
        data: What all the frames read look like, held out and not.
        kept_NCE: uint8, what a model sees of the held-out ones.
        rest_NCE: uint8, what it has to predict.
        zero: Score of the predictor that knows nothing but the mean count of a bin.
        policy: How they were chosen and split.
        weight_N: float32, how many frames each stands for, their mean 1; None if all stand for as many.
        alive_NC: bool, false in dead channels, which are not scored; None if there is none.
    """

    data: DataEmbedding
    kept_NCE: npt.NDArray[np.uint8]
    rest_NCE: npt.NDArray[np.uint8]
    zero: EvaluationReport
    policy: HoldoutPolicy
    weight_N: npt.NDArray[np.float32] | None = None
    alive_NC: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of held-out frames, N."""
        return len(self.kept_NCE)

    def report(self, name: str, nll_N: npt.NDArray[np.float64], version: str = "") -> EvaluationReport:
        """Scores, one a frame, as the gate takes them: times the sampling weights. Of these frames and no others."""
        return _report(name, _weighted(nll_N, self.weight_N), self.zero.frames_digest, version)


def newest_frames(shards: Sequence[SealedShard], policy: HoldoutPolicy, *, most: int) -> NewestFrames:
    """Read the newest frames of `shards` until `most` held-out ones are found, or there are no more.

    Raises:
        DataError: a shard is damaged, or not one frame is held out.
    """
    counts, runs, ids, weights, alive, found = [], [], [], [], [], 0
    for number, shard in enumerate(reversed(shards)):
        reader = ShardReader(shard.manifest_path)
        # The trainer's blocks, because it looks for dead channels in each.
        for block in reversed(cut_into_blocks(reader, number, held_out(reader.pulse_id_N, policy.permille))):
            if found >= most:
                break
            decoded, frames = decode(block, labelled=False), block.stop - block.start
            counts.append(decoded.counts_NCE)
            runs.append(np.full(frames, shard.manifest.run_number, np.int64))
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
    counts, ids = counts_NCE[held], pulse_id_N[held]
    kept_NCE = thin_by_hash(counts, ids, keep=policy.keep, seed=policy.seed)
    rest_NCE = counts - kept_NCE
    others_NCE = counts_NCE[~is_held_N] if not is_held_N.all() else counts_NCE
    rate = np.float32(others_NCE.mean(dtype=np.float64) * (1 - policy.keep))
    weight_N = None if weight_N is None else mean_one(weight_N[held])
    alive_NC = None if alive_NC is None or alive_NC[held].all() else alive_NC[held]
    zero_N = poisson_nll(expected(np.full(rest_NCE.shape, rate), alive_NC), rest_NCE)
    digest = _digest(run_N[held], ids, policy, weight_N, alive_NC)
    return NewestFrames(
        data=embed(counts_NCE),
        kept_NCE=kept_NCE,
        rest_NCE=rest_NCE,
        zero=_report("zero", _weighted(zero_N, weight_N), digest),
        policy=policy,
        weight_N=weight_N,
        alive_NC=alive_NC,
    )


def expected(rate_NCE: npt.NDArray[np.float32], alive_NC: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    """Rates of the scored part with those of dead channels at 0: they have no counts either."""
    return rate_NCE if alive_NC is None else rate_NCE * alive_NC[..., None]


def _weighted(nll_N: npt.NDArray[np.float64], weight_N: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float64]:
    return nll_N if weight_N is None else nll_N * weight_N


def _digest(
    run_N: npt.NDArray[np.int64],
    pulse_id_N: npt.NDArray[np.uint64],
    policy: HoldoutPolicy,
    weight_N: npt.NDArray[np.float32] | None,
    alive_NC: npt.NDArray[np.bool_] | None,
) -> str:
    """As in the trainer's reports: equal digests, comparable scores."""
    sha = hashlib.sha256(np.ascontiguousarray(run_N, dtype="<i8").tobytes())
    sha.update(np.ascontiguousarray(pulse_id_N, dtype="<u8").tobytes())
    sha.update(f"{policy.keep!r} {policy.seed}".encode())
    for name, extra in (("weight", weight_N), ("alive", alive_NC)):
        if extra is not None:
            sha.update(name.encode() + np.ascontiguousarray(extra).tobytes())
    return sha.hexdigest()


def _report(name: str, nll_N: npt.NDArray[np.float64], frames_digest: str, version: str = "") -> EvaluationReport:
    low, high = bootstrap_mean(nll_N)
    return EvaluationReport(
        name=name,
        version=version,
        frames=len(nll_N),
        frames_digest=frames_digest,
        nll=float(nll_N.mean()),
        nll_low=low,
        nll_high=high,
        nll_frames=tuple(nll_N.tolist()),
    )
