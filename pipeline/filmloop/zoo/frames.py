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
from filmloop.staging.catalog import SealedShard
from filmloop.staging.reader import ShardReader
from filmloop.zoo.embedding import DataEmbedding, embed

_READ_FRAMES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestFrames:
    """Held-out frames in the order of (run, pulse id), thinned as the trainer's evaluation thins them.

    Attributes:
        data: What all the frames read look like, held out and not.
        kept_NCE: uint8, what a model sees of the held-out ones.
        rest_NCE: uint8, what it has to predict.
        zero: Score of the predictor that knows nothing but the mean count of a bin.
        policy: How they were chosen and split.
    """

    data: DataEmbedding
    kept_NCE: npt.NDArray[np.uint8]
    rest_NCE: npt.NDArray[np.uint8]
    zero: EvaluationReport
    policy: HoldoutPolicy

    def __len__(self) -> int:
        """Number of held-out frames, N."""
        return len(self.kept_NCE)

    def report(self, name: str, nll_N: npt.NDArray[np.float64], version: str = "") -> EvaluationReport:
        """Scores as the gate takes them; of these frames and no others."""
        return _report(name, nll_N, self.zero.frames_digest, version)


def newest_frames(shards: Sequence[SealedShard], policy: HoldoutPolicy, *, most: int) -> NewestFrames:
    """Read the newest frames of `shards` until `most` held-out ones are found, or there are no more.

    Raises:
        DataError: a shard is damaged, or not one frame is held out.
    """
    counts, runs, ids, found = [], [], [], 0
    for shard in reversed(shards):
        reader = ShardReader(shard.manifest_path)
        for stop in range(reader.frames, 0, -_READ_FRAMES):
            if found >= most:
                break
            start = max(0, stop - _READ_FRAMES)
            pulse_id_N = reader.pulse_id_N[start:stop]
            counts.append(reader.counts(start, stop))
            runs.append(np.full(stop - start, shard.manifest.run_number, np.int64))
            ids.append(pulse_id_N)
            found += int(held_out(pulse_id_N, policy.permille).sum())
    if not found:
        raise DataError(
            f"None of {sum(map(len, ids))} frames is held out, so no model can be scored on them.",
            hint="Wait for more shards, or raise training.holdout.permille.",
        )
    return pick_held_out(np.concatenate(counts), np.concatenate(runs), np.concatenate(ids), policy, most=most)


def pick_held_out(
    counts_NCE: npt.NDArray[np.uint8],
    run_N: npt.NDArray[np.int64],
    pulse_id_N: npt.NDArray[np.uint64],
    policy: HoldoutPolicy,
    *,
    most: int,
) -> NewestFrames:
    """Describe these frames, and split the newest `most` held-out ones of them."""
    is_held_N = held_out(pulse_id_N, policy.permille)
    held = np.flatnonzero(is_held_N)
    held = held[np.lexsort((pulse_id_N[held], run_N[held]))][-most:]
    counts, ids = counts_NCE[held], pulse_id_N[held]
    kept_NCE = thin_by_hash(counts, ids, keep=policy.keep, seed=policy.seed)
    rest_NCE = counts - kept_NCE
    others_NCE = counts_NCE[~is_held_N] if not is_held_N.all() else counts_NCE
    rate = np.float32(others_NCE.mean(dtype=np.float64) * (1 - policy.keep))
    zero_N = poisson_nll(np.broadcast_to(rate, rest_NCE.shape), rest_NCE)
    return NewestFrames(
        data=embed(counts_NCE),
        kept_NCE=kept_NCE,
        rest_NCE=rest_NCE,
        zero=_report("zero", zero_N, _digest(run_N[held], ids, policy)),
        policy=policy,
    )


def _digest(run_N: npt.NDArray[np.int64], pulse_id_N: npt.NDArray[np.uint64], policy: HoldoutPolicy) -> str:
    """As in the trainer's reports: equal digests, comparable scores."""
    sha = hashlib.sha256(np.ascontiguousarray(run_N, dtype="<i8").tobytes())
    sha.update(np.ascontiguousarray(pulse_id_N, dtype="<u8").tobytes())
    sha.update(f"{policy.keep!r} {policy.seed}".encode())
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
