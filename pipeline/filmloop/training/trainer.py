"""The training loop, top to bottom.

Each rank takes its share of every global batch; gradients are averaged; rank 0 decides when to stop and all follow.
Losses are per energy bin; hold-out scores are nats a frame (thinning) or squared counts a bin (labelled).
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from filmloop.core.documents import TrainHyper, TrainJob
from filmloop.core.errors import ConfigError, TerminatedError, TrainingError
from filmloop.core.poisson import RATE_FLOOR
from filmloop.training.batches import Batches, Split
from filmloop.training.data import TrainingData
from filmloop.training.plan import BatchPlan, learning_rate, spent
from filmloop.training.pool import FramePool, Frames
from filmloop.training.progress import Progress, Session
from filmloop.training.ranks import Ranks

CONTROL_STEPS = 10
"""Steps between two agreements of the ranks on stopping: 32 bytes of each, and one line of metrics."""
MAX_SKIPPED_IN_A_ROW = 10
DEADLINE_SHARE = 0.8
"""Share of the job's deadline at which training ends; the rest is for evaluation and the bundle."""
_log = logging.getLogger(__name__)


def train(
    job: TrainJob,
    module: nn.Module,
    data: TrainingData,
    ranks: Ranks,
    *,
    folder: Path,
    told_to_stop: Callable[[], bool],
    started_s: float | None = None,
) -> Progress:
    """Train `module` in place; on return it has the weights with the best hold-out score.

    Goes on from the checkpoint in `folder` if there is one of the same job, and appends to `metrics.jsonl` there.

    Args:
        job: What to do.
        module: The network, on any device.
        data: From `load_data`; its pool is closed on return.
        ranks: Who trains together.
        folder: The run folder.
        told_to_stop: Whether SIGTERM has come.
        started_s: Monotonic time from which the job's deadline counts; now, by default.

    Raises:
        ConfigError: there are more ranks than frames in a batch.
        TerminatedError: `told_to_stop` on any rank; the checkpoint is written.
        TrainingError: gradients or scores that are not finite, or a run that diverges from the start.
        DataError: a shard turned out to be damaged.
        TransientError: the disk refuses a checkpoint.
    """
    hyper, pool = job.hyper, data.pool
    _refuse_idle_ranks(hyper, ranks)
    plan = BatchPlan(pool.orders, hyper, job.seed)
    session = Session(job, module.to(ranks.device), data.holdout, ranks, folder)
    now, optimiser = session.now, session.optimiser
    begun_s, before_s = time.monotonic(), now.elapsed_s
    budget_s = ranks.of_first(_budget_s(job, before_s, begun_s - (begun_s if started_s is None else started_s)))
    batches = Batches(pool, plan, ranks.part(hyper.batch_frames), session.add_wait)
    # A GPU's queue is ahead of its host anyway.
    meanwhile = batches.make_following if ranks.device.type == "cpu" else None
    parallel = ranks.wrap(_compiled(module) if hyper.compile else module, meanwhile)
    autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=_in_bfloat16(hyper, ranks.device))
    # DDP averages over ranks: this makes the sum over a share the mean over the global batch, unequal shares included.
    scale = ranks.world / (hyper.batch_frames * data.bins)
    skipped = _Skipped(module, pool, now, job.job_id)
    pool.start(plan, now.step)

    try:
        while now.status == "running":
            if now.step % CONTROL_STEPS == 0 or now.step >= plan.steps:
                if session.agree(before_s + time.monotonic() - begun_s, told_to_stop()):
                    raise _stopped(session, job.job_id)
                if now.step >= plan.steps:
                    now.status = "completed"
                elif now.step > 0 and now.elapsed_s >= budget_s:
                    now.status = "time_limit"
            share_spent = spent(step=now.step, steps=plan.steps, elapsed_s=now.elapsed_s, budget_s=budget_s)
            # At the height of the cosine a hold-out that gets no better means nothing yet: be patient in the first half.
            due = now.status == "running" and now.step % hyper.evaluate_every_steps == 0
            if due and session.evaluate(patient=share_spent < 0.5) and now.status == "running":
                now.status = "early_stop"
            if now.status != "running":
                break

            rate = learning_rate(hyper, step=now.step, steps=plan.steps, share=share_spent)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch = batches(now.step)
            with autocast:
                loss = loss_N(parallel, batch.frames, batch.split).sum() * scale
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(module.parameters(), hyper.gradient_clip)
            now.step += 1
            now.epochs = plan.epochs(now.step)
            if torch.isfinite(norm):
                optimiser.step()
                session.add_loss(loss.detach(), rate)
                skipped.in_a_row = 0
            else:
                skipped.add(batch.frames)

        session.agree(before_s + time.monotonic() - begun_s, False)
        session.finish()
    finally:
        pool.close()
        session.close()
    return now


def _refuse_idle_ranks(hyper: TrainHyper, ranks: Ranks) -> None:
    """A rank with nothing to do only slows the others down, and not every network takes a batch of no frames."""
    if ranks.world > hyper.batch_frames:
        raise ConfigError(
            f"training.hyper.batch_frames = {hyper.batch_frames} is below the number of ranks, {ranks.world}.",
            hint="Raise it, or start fewer ranks: see [launcher] of the site file.",
        )


def _budget_s(job: TrainJob, before_s: float, start_up_s: float) -> float:
    """Seconds of training at which to stop, those before a restart included: a deadline must leave time for the bundle."""
    return min(job.hyper.train_s, before_s + max(DEADLINE_SHARE * job.deadline_s - start_up_s, 0.0))


def _compiled(module: nn.Module) -> nn.Module:
    """The same network, its kernels fused; its weights are the module's own."""
    compiled = torch.compile(module)
    assert isinstance(compiled, nn.Module)
    return compiled


def _in_bfloat16(hyper: TrainHyper, device: torch.device) -> bool:
    return hyper.precision == "bfloat16" or (hyper.precision == "auto" and device.type == "cuda")


def loss_N(model: nn.Module, frames: Frames, split: Split | None = None) -> Tensor:
    """Loss of each frame, summed over its bins; of frames without labels by this split of theirs."""
    if frames.label_NCE is not None:
        error_NCE = (model(frames.counts_NCE.float()).float() - frames.label_NCE.float()).square()
        if frames.weight_NC1 is not None:
            error_NCE = error_NCE * frames.weight_NC1
        return torch.sum(error_NCE, dim=(1, 2))
    split = split or Split.of(frames)
    if frames.gain_NC1 is None:
        rate_NCE = model(split.kept_NCE / split.keep_N11)
    else:
        rate_NCE = model(split.kept_NCE / (split.keep_N11 * frames.gain_NC1)) * frames.gain_NC1
    return thinned_loss(rate_NCE, split.rest_NCE, split.keep_N11, frames.weight_NC1)


def thinned_loss(rate_NCE: Tensor, rest_NCE: Tensor, keep_N11: Tensor, weight_NC1: Tensor | None = None) -> Tensor:
    """Poisson negative log-likelihood of the part that the model did not see, without log b!, over 1 - p; (N,).

    The division makes frames of every p count alike: the expected gradient with respect to the rate no longer
    depends on p.
    """
    unseen_N11 = 1.0 - keep_N11
    expected_NCE = rate_NCE * unseen_N11
    # The floor is added, not clamped: a clamped bin would have no gradient, and never learn of its count.
    nats_NCE = expected_NCE - rest_NCE * torch.log(expected_NCE + RATE_FLOOR)
    factor_NC1 = 1.0 / unseen_N11 if weight_NC1 is None else weight_NC1 / unseen_N11
    return (nats_NCE * factor_NC1).sum(dim=(1, 2))


def _stopped(session: Session, job_id: str) -> TerminatedError:
    """Write the checkpoint; returns what to raise."""
    session.save(wait=True)
    return TerminatedError(
        f"Job {job_id} was told to stop at step {session.now.step}.",
        hint="Its checkpoint is written: start the same job again and it goes on from there.",
        ids={"job_id": job_id},
    )


@dataclass(slots=True)
class _Skipped:
    """Steps that are not taken because their gradient is not finite: counted, named, and too many in a row an error."""

    module: nn.Module
    pool: FramePool
    now: Progress
    job_id: str
    in_a_row: int = 0

    def add(self, frames: Frames) -> None:
        """One more.

        Raises:
            TrainingError: it is one too many.
        """
        self.now.skipped += 1
        self.in_a_row += 1
        self._name(frames)
        if self.in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"The gradient was not finite in {self.in_a_row} steps in a row (step {self.now.step}).",
                hint="Lower training.hyper.learning_rate, or look at the newest shards with `filmloop shards verify`.",
                ids={"job_id": self.job_id},
            )

    def _name(self, frames: Frames) -> None:
        """Say which frames have no finite loss; it may be none, if only the gradient overflowed."""
        with torch.no_grad():
            bad = np.flatnonzero(~torch.isfinite(loss_N(self.module, frames)).cpu().numpy())
        names = "; ".join(self.pool.name(int(index)) for index in frames.batch.index_N[bad[:3]])
        named = f": {names}{' and more' if len(bad) > 3 else ''}" if len(bad) else " in no frame by itself"
        _log.warning("step %d is skipped, its gradient is not finite; neither is the loss%s", self.now.step, named)
