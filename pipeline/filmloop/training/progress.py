"""What the training loop keeps beside the weights: its progress, the best weights so far, metrics and checkpoints.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from filmloop.bundle import METRICS
from filmloop.core.documents import TrainJob
from filmloop.core.errors import TrainingError
from filmloop.core.fsio import disk_errors
from filmloop.core.poisson import RATE_FLOOR
from filmloop.training.checkpoint import parse_checkpoint, read_checkpoint, save_checkpoint
from filmloop.training.data import Holdout
from filmloop.training.ranks import Ranks

_SCORE_FRAMES = 256
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where the loop stands; all of it goes into a checkpoint.

    Attributes:
        step: Steps done.
        epochs: How often every frame was seen.
        elapsed_s: Seconds in the loop, those before a restart included.
        status: Why it ended, or `running`.
        skipped: Steps left out for a gradient that was not finite.
        loss_first: Mean loss a bin of the first steps reported.
        loss_last: That of the last ones.
        best_score: Lowest hold-out score.
        best_step: When that was.
        lowest: Lowest score of all but the starting weights.
        worse: Evaluations since then in which patience was lost.
        evaluated_step: When the hold-out was last scored; -1 is never.
        resumed_from_step: Step of the checkpoint that this process began with.
        metrics_bytes: Length of `metrics.jsonl`.
    """

    step: int = 0
    epochs: float = 0.0
    elapsed_s: float = 0.0
    status: Literal["running", "completed", "early_stop", "time_limit"] = "running"
    skipped: int = 0
    loss_first: float = math.nan
    loss_last: float = math.nan
    best_score: float = math.inf
    best_step: int = 0
    lowest: float = math.inf
    worse: int = 0
    evaluated_step: int = -1
    resumed_from_step: int = 0
    metrics_bytes: int = 0


class Session:
    """One process's side of a training run.

    Attributes:
        now: Where the loop stands.
        optimiser: Adam over the module's parameters, restored with them.
    """

    def __init__(self, job: TrainJob, module: nn.Module, holdout: Holdout, ranks: Ranks, folder: Path) -> None:
        self.now = Progress()
        self.optimiser = torch.optim.Adam(module.parameters(), lr=job.hyper.learning_rate)
        self._job, self._module, self._ranks, self._folder = job, module, ranks, folder
        self._holdout = holdout[ranks.part(len(holdout))]
        self._best: dict[str, Tensor] = {}
        self._window_loss: Tensor | float = 0.0
        self._window_steps = 0
        self._window_begun_s = self._saved_s = time.monotonic()
        self._learning_rate = 0.0
        self._resume()

    def add_loss(self, loss: Tensor, rate: float) -> None:
        """Count one finished step; `loss` is this rank's, scaled so that the mean over ranks is that of the batch."""
        self._window_loss = self._window_loss + loss
        self._window_steps += 1
        self._learning_rate = rate

    def agree(self, elapsed_s: float, told_to_stop: bool) -> bool:
        """Bring all ranks to rank 0's clock, write a line of metrics, and a checkpoint if it is time.

        Returns:
            Whether any rank was told to stop.
        """
        first = self._ranks.is_first
        is_due = first and time.monotonic() - self._saved_s >= self._job.hyper.checkpoint_every_s
        loss, stop, elapsed_s, due = self._ranks.sum(
            float(self._window_loss), float(told_to_stop), elapsed_s if first else 0.0, float(is_due)
        )
        self.now.elapsed_s = elapsed_s
        if self._window_steps:
            self.now.loss_last = loss / self._window_steps / self._ranks.world
            if math.isnan(self.now.loss_first):
                self.now.loss_first = self.now.loss_last
            window_s = max(time.monotonic() - self._window_begun_s, 1e-9)
            self._write_metrics(
                loss=self.now.loss_last,
                frames_per_s=self._window_steps * self._job.hyper.batch_frames / window_s,
                learning_rate=self._learning_rate,
            )
        if due:
            self.save()
        self._window_loss, self._window_steps, self._window_begun_s = 0.0, 0, time.monotonic()
        return stop > 0

    def evaluate(self, *, patient: bool = True) -> bool:
        """Score the hold-out unless this step was scored already, and keep the weights if they are the best so far.

        Patience is lost when training does not improve on its own lowest score, the starting weights' apart: a warm
        start is worse than its base until the learning rate has come down. `patient` loses none this time.

        Returns:
            Whether patience has run out.

        Raises:
            TrainingError: the score is not finite.
        """
        now = self.now
        if now.evaluated_step == now.step:
            return False
        now.evaluated_step = now.step
        total, frames = self._ranks.sum(self._score(), float(len(self._holdout)))
        score = total / frames
        if not math.isfinite(score):
            raise TrainingError(
                f"The hold-out score at step {now.step} is {score}.",
                hint="Lower training.hyper.learning_rate; if it is a warm start, the base weights may be damaged.",
                ids={"job_id": self._job.job_id},
            )
        if score < now.best_score:
            now.best_score, now.best_step = score, now.step
            self._best = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        if now.step > 0 and score < now.lowest:
            now.lowest, now.worse = score, 0
        elif now.step > 0 and not patient:
            now.worse += 1
        name = "mse" if self._job.hyper.mode == "labelled" else "nll"
        self._write_metrics(**{name: score})
        if self._ranks.is_first:
            _log.info("step %d: hold-out %s %.5g, loss %.5g", now.step, name, score, now.loss_last)
        return now.worse >= self._job.hyper.patience_evaluations

    def finish(self) -> None:
        """Score the last step, put the best weights into the module, and write the checkpoint of the finished loop.

        Raises:
            TrainingError: the last score is not finite, or not one step could be taken.
        """
        if math.isnan(self.now.loss_last):
            raise TrainingError(
                f"Not one of {self.now.step} steps had a finite gradient.",
                hint="Look at the shards with `filmloop shards verify`, or train from scratch (training.warm_start).",
                ids={"job_id": self._job.job_id},
            )
        self.evaluate()
        self.save()
        self._module.load_state_dict(self._best)

    def save(self) -> None:
        """Write a checkpoint; only rank 0 does."""
        self._saved_s = time.monotonic()
        if not self._ranks.is_first:
            return
        state = {
            "module": self._module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self._best,
            "progress": asdict(self.now),
        }
        save_checkpoint(self._folder, self._job, state)

    def _resume(self) -> None:
        data = self._ranks.from_first(read_checkpoint(self._folder) if self._ranks.is_first else None)
        state = None if data is None else parse_checkpoint(data, self._job, self._ranks.device)
        if state is not None:
            self._module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self._best = state["best"]
            self.now = Progress(**state["progress"])
            self.now.resumed_from_step = self.now.step
            _log.info("job %s goes on from step %d", self._job.job_id, self.now.step)
        if self._ranks.is_first:
            _cut_metrics(self._folder / METRICS, self.now.metrics_bytes)

    def _score(self) -> float:
        """Sum of this rank's hold-out scores."""
        device, keep, total = self._ranks.device, self._holdout.policy.keep, 0.0
        self._module.eval()
        with torch.inference_mode():
            for start in range(0, len(self._holdout), _SCORE_FRAMES):
                part = self._holdout[start : start + _SCORE_FRAMES]
                if part.label_NCE is not None:
                    rate_NCE = self._module(torch.from_numpy(part.counts_NCE).to(device).float())
                    error_NCE = rate_NCE - torch.from_numpy(part.label_NCE).to(device)
                    total += float(error_NCE.square().sum(dtype=torch.float64)) / error_NCE[0].numel()
                    continue
                rate_NCE = self._module(torch.from_numpy(part.model_input()).to(device))
                expected_NCE = (rate_NCE * (1.0 - keep)).clamp_min(RATE_FLOOR)
                rest_NCE = torch.from_numpy(part.scored_part()).to(device)
                total += float((expected_NCE - rest_NCE * expected_NCE.log()).sum(dtype=torch.float64))
        self._module.train()
        return total

    def _write_metrics(self, **values: float) -> None:
        if not self._ranks.is_first:
            return
        path = self._folder / METRICS
        line = {"step": self.now.step, **values, "elapsed_s": round(self.now.elapsed_s, 3)}
        with disk_errors(path), path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
            self.now.metrics_bytes = out.tell()


def _cut_metrics(path: Path, size_bytes: int) -> None:
    """Cut the file to its whole lines among the first `size_bytes` bytes, which the checkpoint knows of.

    What a killed process wrote after its checkpoint belongs to steps that are walked again. After a power cut the file
    may be the shorter one: it is not synced with every line, the checkpoint is.
    """
    with disk_errors(path), path.open("a+b") as metrics:
        metrics.seek(0)
        metrics.truncate(metrics.read(size_bytes).rfind(b"\n") + 1)
