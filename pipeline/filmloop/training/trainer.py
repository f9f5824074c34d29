"""The training loop, top to bottom.

Each rank takes its share of every global batch; gradients are averaged; rank 0 decides when to stop and all follow.
Losses are per energy bin; hold-out scores are nats a frame (thinning) or squared counts a bin (labelled).
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from filmloop.core.documents import TrainJob
from filmloop.core.errors import TerminatedError, TrainingError
from filmloop.core.poisson import RATE_FLOOR
from filmloop.training.data import TrainingData
from filmloop.training.plan import Batch, BatchPlan, learning_rate, spent
from filmloop.training.progress import Progress, Session
from filmloop.training.ranks import Ranks
from filmloop.training.thinning import thin

CONTROL_STEPS = 10
"""Steps between two agreements of the ranks on stopping: one message of 32 bytes, and one line of metrics."""
MAX_SKIPPED_IN_A_ROW = 10
DEADLINE_SHARE = 0.8
"""Share of the job's deadline that training may take; the rest is for start-up, evaluation and the bundle."""


def train(
    job: TrainJob,
    module: nn.Module,
    data: TrainingData,
    ranks: Ranks,
    *,
    folder: Path,
    told_to_stop: Callable[[], bool],
) -> Progress:
    """Train `module` in place; on return it has the weights with the best hold-out score.

    Goes on from the checkpoint in `folder` if there is one of the same job, and appends to `metrics.jsonl` there.

    Raises:
        TerminatedError: `told_to_stop` on any rank; the checkpoint is written.
        TrainingError: gradients or scores that are not finite.
    """
    hyper = job.hyper
    frames = _Frames(data, ranks.device)
    plan = BatchPlan(len(frames), hyper, job.seed)
    budget_s = min(hyper.train_s, DEADLINE_SHARE * job.deadline_s)
    session = Session(job, module.to(ranks.device), data.holdout, ranks, folder)
    now, optimiser = session.now, session.optimiser
    parallel = ranks.wrap(module)
    # DDP averages over ranks: this makes the sum over a share the mean over the global batch, unequal shares included.
    weight = ranks.world / (hyper.batch_frames * frames.bins)
    share = ranks.part(hyper.batch_frames)
    before_s, started_s = now.elapsed_s, time.monotonic()
    skipped_in_a_row = 0

    while now.status == "running":
        if now.step % CONTROL_STEPS == 0 or now.step >= plan.steps:
            elapsed_s = before_s + time.monotonic() - started_s
            if session.agree(elapsed_s, told_to_stop()):
                session.save()
                raise TerminatedError(
                    f"Job {job.job_id} was told to stop at step {now.step}.",
                    hint="Its checkpoint is written: start the same job again and it goes on from there.",
                    ids={"job_id": job.job_id},
                )
            if now.step >= plan.steps:
                now.status = "completed"
            elif now.step > 0 and now.elapsed_s >= budget_s:
                now.status = "time_limit"
        share_spent = spent(step=now.step, steps=plan.steps, elapsed_s=now.elapsed_s, budget_s=budget_s)
        # At the height of the cosine a hold-out that gets no better means nothing yet: be patient in the first half.
        due = now.status == "running" and now.step % hyper.evaluate_every_steps == 0
        if due and session.evaluate(patient=share_spent < 0.5):
            now.status = "early_stop"
        if now.status != "running":
            break

        rate = learning_rate(hyper, step=now.step, steps=plan.steps, share=share_spent)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = frames.loss(parallel, plan.batch(now.step)[share]) * weight
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(module.parameters(), hyper.gradient_clip)
        now.step += 1
        now.epochs = plan.epochs(now.step)
        if torch.isfinite(norm):
            optimiser.step()
            session.add_loss(loss.detach(), rate)
            skipped_in_a_row = 0
            continue
        now.skipped += 1
        skipped_in_a_row += 1
        if skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"The gradient was not finite in {skipped_in_a_row} steps in a row (step {now.step}).",
                hint="Lower training.hyper.learning_rate, or look at the newest shards with `filmloop shards verify`.",
                ids={"job_id": job.job_id},
            )

    session.agree(before_s + time.monotonic() - started_s, False)
    session.finish()
    return now


class _Frames:
    """The training frames on the device, and the loss of a share of a batch."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        self._device = device
        self._counts_NCE = torch.from_numpy(data.counts_NCE).to(device)
        self._label_NCE = None if data.label_NCE is None else torch.from_numpy(data.label_NCE).to(device)
        self.bins = self._counts_NCE[0].numel()

    def __len__(self) -> int:
        return len(self._counts_NCE)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss, summed over the frames of `batch` and their bins."""
        index_N = torch.from_numpy(batch.index_N).to(self._device)
        counts_NCE = self._counts_NCE[index_N]
        if self._label_NCE is not None:
            return nn.functional.mse_loss(model(counts_NCE.float()), self._label_NCE[index_N].float(), reduction="sum")
        keep_N = torch.from_numpy(batch.keep_N).to(self._device)
        kept_NCE, rest_NCE = thin(counts_NCE, keep_N, torch.from_numpy(batch.draw_N).to(self._device))
        keep_N11 = keep_N[:, None, None]
        return thinned_loss(model(kept_NCE / keep_N11), rest_NCE, keep_N11)


def thinned_loss(rate_NCE: Tensor, rest_NCE: Tensor, keep_N11: Tensor) -> Tensor:
    """Poisson negative log-likelihood of the part that the model did not see, without log b!, over 1 - p; summed.

    The division makes frames of every p count alike: the expected gradient with respect to the rate no longer
    depends on p.
    """
    unseen_N11 = 1.0 - keep_N11
    expected_NCE = rate_NCE * unseen_N11
    # The floor is added, not clamped: a clamped bin would have no gradient, and never learn of its count.
    return ((expected_NCE - rest_NCE * torch.log(expected_NCE + RATE_FLOOR)) / unseen_N11).sum()
