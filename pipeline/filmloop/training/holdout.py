"""The frames that no model trains on: which they are, how each is split, what a model is given, how it is scored.

One set of rules for the trainer, `filmloop evaluate` and the zoo at the edge. Imports no torch.
Shape suffixes: N frames, C channels, E energy bins, S shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from filmloop.core.counted import counted
from filmloop.core.documents import EvaluationReport, HoldoutPolicy, TrainJob
from filmloop.core.errors import DataError
from filmloop.core.poisson import bootstrap_mean, poisson_nll, thin_by_hash
from filmloop.core.weights import mean_one

if TYPE_CHECKING:  # who only scores needs no zarr
    from filmloop.staging.reader import ShardReader
    from filmloop.training.blocks import Block, Decoded

RateFunction = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Counts (N, C, E) float32 to rates (N, C, E) float32: the expected counts of the whole frame."""

MIN_HELD_OUT_FRAMES = 10
FEW_HELD_OUT_FRAMES = 200
"""Fewer held-out fresh frames than this, and replayed ones are scored too: the gate needs 200 by default."""
_BATCH_FRAMES = 256


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

    @classmethod
    def of(
        cls,
        counts_NCE: npt.NDArray[np.uint8],
        run_N: npt.NDArray[np.int64],
        pulse_id_N: npt.NDArray[np.uint64],
        policy: HoldoutPolicy,
        *,
        label_NCE: npt.NDArray[np.float16] | None = None,
        weight_N: npt.NDArray[np.float32] | None = None,
        alive_NC: npt.NDArray[np.bool_] | None = None,
        gain_NC: npt.NDArray[np.float32] | None = None,
    ) -> Holdout:
        """These frames, split by the policy; weights as they were staged.

        Raises:
            DataError: a weight is not a positive number.
        """
        return cls(
            run_N=run_N,
            pulse_id_N=pulse_id_N,
            counts_NCE=counts_NCE,
            kept_NCE=thin_by_hash(counts_NCE, pulse_id_N, keep=policy.keep, seed=policy.seed),
            label_NCE=label_NCE,
            policy=policy,
            weight_N=None if weight_N is None else mean_one(weight_N),
            alive_NC=None if alive_NC is None or alive_NC.all() else alive_NC,
            gain_NC=gain_NC,
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

    def scores(self, rate_of: RateFunction) -> npt.NDArray[np.float64]:
        """Thinned NLL of each frame, nats without the log b! term, times its weight; a batch at a time."""
        parts = []
        for start in range(0, len(self), _BATCH_FRAMES):
            part = self[start : start + _BATCH_FRAMES]
            parts.append(part.weighted(poisson_nll(part.expected(rate_of(part.model_input())), part.scored_part())))
        return np.concatenate(parts)

    def report(self, name: str, score_N: npt.NDArray[np.float64], version: str = "") -> EvaluationReport:
        """Scores as the gate takes them, with their 95 % interval."""
        low, high = bootstrap_mean(score_N)
        return EvaluationReport(
            name=name,
            version=version,
            frames=len(self),
            frames_digest=self.digest(),
            nll=float(score_N.mean()),
            nll_low=low,
            nll_high=high,
            nll_frames=tuple(score_N.tolist()),
        )

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
class Chosen:
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
        return Holdout.of(
            counts_NCE,
            self.run_N,
            self.pulse_id_N,
            job.holdout,
            label_NCE=label_NCE,
            weight_N=self.weight_N,
            alive_NC=alive_NC,
            gain_NC=None if gain_SC is None else gain_SC[self.shard_N],
        )


def choose_held_out(readers: list[ShardReader], held: list[npt.NDArray[np.bool_]], job: TrainJob) -> Chosen:
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
            f"Job {job.job_id} has {counted(len(chosen), 'held-out frame')}; at least {MIN_HELD_OUT_FRAMES} are needed to judge.",
            hint="Wait for more shards, or raise training.holdout.permille.",
            ids={"job_id": job.job_id},
        )
    return Chosen(
        shard_N=shard_N[chosen],
        frame_N=frame_N[chosen],
        run_N=run_N[chosen],
        pulse_id_N=pulse_id_N[chosen],
        weight_N=weight_N[chosen],
    )
