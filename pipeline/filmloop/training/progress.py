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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from filmloop.bundle import METRICS
from filmloop.core.documents import TrainJob
from filmloop.core.errors import TrainingError
from filmloop.core.fsio import disk_errors
from filmloop.core.poisson import poisson_nll
from filmloop.training.checkpoints.keeper import Checkpoints
from filmloop.training.holdout import Holdout
from filmloop.training.ranks import Ranks

_SCORE_FRAMES = 256
_DIVERGED_EVALUATIONS = 3
_DIVERGED_MARGIN = 0.05
"""A run diverges that is so often in a row worse than its best and than one mean rate for all bins, by this share of the
latter's score."""
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
        hopeless: Evaluations in a row that were worse than the best one, and than one mean rate for all bins.
        evaluated_step: When the hold-out was last scored; -1 is never.
        resumed_from_step: Step of the checkpoint that this process began with.
        metrics_bytes: Length of `metrics.jsonl`.
        loop_s: Seconds that rank 0 spent in steps, those before a restart included.
        waited_s: Of these, seconds in which a step had no frames yet.
        best_scores_N: float64, scores of all held-out frames by the best weights.
        start_scores_N: The same by the weights before the first step.
    """

    step: int = 0
    epochs: float = 0.0
    elapsed_s: float = 0.0
    status: Literal["running", "completed", "early_stop", "time_limit", "diverged"] = "running"
    skipped: int = 0
    loss_first: float = math.nan
    loss_last: float = math.nan
    best_score: float = math.inf
    best_step: int = 0
    lowest: float = math.inf
    worse: int = 0
    hopeless: int = 0
    evaluated_step: int = -1
    resumed_from_step: int = 0
    metrics_bytes: int = 0
    loop_s: float = 0.0
    waited_s: float = 0.0
    best_scores_N: Tensor | None = None
    start_scores_N: Tensor | None = None

    @property
    def loader_idle_share(self) -> float:
        """Share of the time of the steps that was spent on getting frames, waiting for the disk included."""
        return self.waited_s / max(self.loop_s, 1e-9)


class Session:
    """One process's side of a training run.

    Attributes:
        now: Where the loop stands.
        optimiser: Adam over the module's parameters, restored with them.
    """

    def __init__(self, job: TrainJob, module: nn.Module, holdout: Holdout, ranks: Ranks, folder: Path) -> None:
        self.now = Progress()
        # One kernel for all parameters, on CPUs too: 0.1 ms a step instead of 0.45 for the mixer.
        self.optimiser = torch.optim.Adam(module.parameters(), lr=job.hyper.learning_rate, fused=True)
        self._job, self._module, self._ranks, self._folder = job, module, ranks, folder
        self._holdout, self._held_out_frames = holdout[ranks.part(len(holdout))], len(holdout)
        self._best: dict[str, Tensor] = {}
        self._window_loss: Tensor | float = 0.0
        self._window_steps = 0
        self._window_begun_s = self._saved_s = time.monotonic()
        self._learning_rate = self._window_waited_s = 0.0
        self._checkpoints = Checkpoints(folder, job, ranks)
        self._constant_score = _constant_score(holdout)
        self._resume()

    def add_wait(self, seconds: float) -> None:
        """Count the time in which a step had no frames yet."""
        self._window_waited_s += seconds

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
        # Before the first step there is nothing to keep.
        waited_s = time.monotonic() - self._saved_s
        is_due = self.now.step > 0 and waited_s >= self._job.hyper.checkpoint_every_s and not self._checkpoints.is_busy
        loss, stop, elapsed_s, due = self._ranks.sum(
            float(self._window_loss), float(told_to_stop), elapsed_s if first else 0.0, float(first and is_due)
        )
        self.now.elapsed_s = elapsed_s
        if self._window_steps:
            self.now.loss_last = loss / self._window_steps / self._ranks.world
            if math.isnan(self.now.loss_first):
                self.now.loss_first = self.now.loss_last
            window_s = max(time.monotonic() - self._window_begun_s, 1e-9)
            self.now.loop_s += window_s
            self.now.waited_s += self._window_waited_s
            self._write_metrics(
                loss=self.now.loss_last,
                frames_per_s=self._window_steps * self._job.hyper.batch_frames / window_s,
                learning_rate=self._learning_rate,
                loader_idle_share=round(self._window_waited_s / window_s, 5),
            )
        if due:
            self.save()
        self._window_loss, self._window_steps, self._window_waited_s = 0.0, 0, 0.0
        self._window_begun_s = time.monotonic()
        return stop > 0

    def evaluate(self, *, patient: bool = True) -> bool:
        """Score the hold-out unless this step was scored already, and keep the weights if they are the best so far.

        Patience is lost when training does not improve on its own lowest score, the starting weights' apart: a warm
        start is worse than its base until the learning rate has come down. `patient` loses none this time.

        Returns:
            Whether to stop: patience has run out, or the run diverges, which `now.status` then says.

        Raises:
            TrainingError: the score is not finite, or the run diverges from weights that nothing had been learned by.
        """
        now = self.now
        if now.evaluated_step == now.step:
            return False
        now.evaluated_step = now.step
        scores_N = self._ranks.joined(self._own_scores(), self._held_out_frames)
        score = float(scores_N.mean())
        if not math.isfinite(score):
            raise TrainingError(
                f"The hold-out score at step {now.step} is {score}.",
                hint="Lower training.hyper.learning_rate; if it is a warm start, the base weights may be damaged.",
                ids={"job_id": self._job.job_id},
            )
        if now.step == 0:
            now.start_scores_N = torch.from_numpy(scores_N)
        if score < now.best_score:
            now.best_score, now.best_step, now.best_scores_N = score, now.step, torch.from_numpy(scores_N)
            self._best = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        if now.step > 0 and score < now.lowest:
            now.lowest, now.worse = score, 0
        elif now.step > 0 and not patient:
            now.worse += 1
        name = "mse" if self._job.hyper.mode == "labelled" else "nll"
        self._write_metrics(**{name: score})
        if self._ranks.is_first:
            _log.info("step %d: hold-out %s %.5g, loss %.5g", now.step, name, score, now.loss_last)
        # The time of an evaluation is none of the steps'.
        self._window_begun_s = time.monotonic() if self._window_steps == 0 else self._window_begun_s
        limit = max(now.best_score, self._constant_score) + _DIVERGED_MARGIN * abs(self._constant_score)
        now.hopeless = now.hopeless + 1 if score > limit else 0
        if now.hopeless >= _DIVERGED_EVALUATIONS:
            self._give_up(score)
            return True
        return now.worse >= self._job.hyper.patience_evaluations

    def _give_up(self, score: float) -> None:
        self.now.status = "diverged"
        told = (
            f"Training diverged: the hold-out score was {score:.5g} at step {self.now.step}, "
            f"{self.now.best_score:.5g} at step {self.now.best_step}."
        )
        if self.now.best_step == 0:
            raise TrainingError(
                f"{told} It never got better than the weights it started from.",
                hint="Lower training.hyper.learning_rate, or look at the newest shards with `filmloop shards verify`.",
                ids={"job_id": self._job.job_id},
            )
        if self._ranks.is_first:
            _log.warning("%s The best weights are kept.", told)

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
        self.save(wait=True)
        self._module.load_state_dict(self._best)

    def save(self, *, wait: bool = False) -> None:
        """Have a checkpoint written, and `wait` for it; all ranks do so together.

        Raises:
            TransientError: the disk refused this one, if waited for, or the one before it.
        """
        self._saved_s = time.monotonic()
        state = {
            "module": self._module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self._best,
            "progress": asdict(self.now),
        }
        self._checkpoints.save(state)
        if wait:
            self._checkpoints.finish()

    def close(self) -> None:
        """Let the checkpoint that is being written become whole."""
        self._checkpoints.close()

    def _resume(self) -> None:
        state = self._checkpoints.latest()
        if state is not None:
            self._module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self._best = state["best"]
            self.now = Progress(**state["progress"])
            self.now.resumed_from_step = self.now.step
            _log.info("job %s goes on from step %d", self._job.job_id, self.now.step)
        if self._ranks.is_first:
            _cut_metrics(self._folder / METRICS, self.now.metrics_bytes)

    def _own_scores(self) -> npt.NDArray[np.float64]:
        """Scores of this rank's part of the hold-out."""
        device, scores_N = self._ranks.device, np.empty(len(self._holdout))
        self._module.eval()
        with torch.inference_mode():
            for start in range(0, len(self._holdout), _SCORE_FRAMES):
                part = self._holdout[start : start + _SCORE_FRAMES]
                input_NCE = part.counts_NCE.astype(np.float32) if part.label_NCE is not None else part.model_input()
                rate_NCE = self._module(torch.from_numpy(input_NCE).to(device)).cpu().numpy()
                scores_N[start : start + _SCORE_FRAMES] = part.weighted(_scores(part, rate_NCE))
        self._module.train()
        return scores_N

    def _write_metrics(self, **values: float) -> None:
        if not self._ranks.is_first:
            return
        path = self._folder / METRICS
        line = {"step": self.now.step, **values, "elapsed_s": round(self.now.elapsed_s, 3)}
        with disk_errors(path), path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
            self.now.metrics_bytes = out.tell()


def _scores(part: Holdout, rate_NCE: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Score of each frame, (N,): squared counts a bin with labels, nats without."""
    if part.label_NCE is None:
        return poisson_nll(part.expected(rate_NCE), part.scored_part())
    error_NCE = rate_NCE - part.label_NCE
    if part.alive_NC is not None:
        error_NCE = error_NCE * part.alive_NC[..., None]
    return np.asarray(np.square(error_NCE).mean(axis=(1, 2), dtype=np.float64))


def _constant_score(holdout: Holdout) -> float:
    """What a model would score that says the same rate for every bin."""
    if holdout.label_NCE is not None:
        mean = np.float32(holdout.label_NCE.mean(dtype=np.float64))
        return float(_scores(holdout, np.full(holdout.label_NCE.shape, mean, np.float32)).mean())
    mean = np.float32(holdout.counts_NCE.mean(dtype=np.float64))
    parts = (holdout[start : start + _SCORE_FRAMES] for start in range(0, len(holdout), _SCORE_FRAMES))
    scores = [part.weighted(_scores(part, np.full(part.counts_NCE.shape, mean, np.float32))) for part in parts]
    return float(np.concatenate(scores).mean())


def _cut_metrics(path: Path, size_bytes: int) -> None:
    """Cut the file to its whole lines among the first `size_bytes` bytes, which the checkpoint knows of.

    What a killed process wrote after its checkpoint belongs to steps that are walked again. After a power cut the file
    may be the shorter one: it is not synced with every line, the checkpoint is.
    """
    with disk_errors(path), path.open("a+b") as metrics:
        metrics.seek(0)
        metrics.truncate(metrics.read(size_bytes).rfind(b"\n") + 1)
