from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.errors import TerminatedError, TrainingError
from filmloop.core.holdout import held_out
from filmloop.core.types import FrameBlock
from filmloop.testing.shards import write_shard
from filmloop.testing.training import shard_ref, simulated_counts, small_job, staged_frames
from filmloop.training.data import load_data
from filmloop.training.evaluate import evaluate, rate_function
from filmloop.training.load import build_module
from filmloop.training.plan import BatchPlan
from filmloop.training.plots import plot_training
from filmloop.training.pool import Frames
from filmloop.training.progress import Progress
from filmloop.training.ranks import Ranks
from filmloop.training.trainer import loss_N, train


def _train(job: TrainJob, folder: Path, told_to_stop: Callable[[], bool] = lambda: False) -> tuple[nn.Module, Progress]:
    torch.manual_seed(job.seed)
    module = build_module(job.model)
    return module, train(job, module, load_data(job), Ranks(), folder=folder, told_to_stop=told_to_stop)


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], other[name]) for name in mine)


def test_training_lowers_the_hold_out_score_and_tells_so(folder: Path, shard: ShardRef) -> None:
    _, progress = _train(small_job(folder, shard), folder)
    lines = _lines(folder)
    scores = [line["nll"] for line in lines if "nll" in line]
    assert progress.status == "completed"
    assert progress.step == 40
    assert scores[-1] < scores[0] - 50  # nats a frame; 40 steps bring about 200
    assert progress.best_score == min(scores)
    assert progress.loss_last < progress.loss_first
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert {"step", "loss", "frames_per_s", "elapsed_s"} <= set(lines[1])


def test_the_same_job_gives_the_same_weights(tmp_path: Path, shard: ShardRef) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(_train(small_job(tmp_path / name, shard), tmp_path / name)[0])
    assert _same(*runs)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path, shard: ShardRef) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, at_once = _train(small_job(tmp_path / "whole", shard), tmp_path / "whole")

    asked = iter(range(100))
    with pytest.raises(TerminatedError, match="step 20"):
        _train(small_job(tmp_path / "cut", shard), tmp_path / "cut", told_to_stop=lambda: next(asked) == 2)
    cut, progress = _train(small_job(tmp_path / "cut", shard), tmp_path / "cut")

    assert progress.resumed_from_step == 20
    for scores in ("start_scores_N", "best_scores_N"):
        np.testing.assert_array_equal(getattr(progress, scores), getattr(at_once, scores))
    assert _same(whole, cut)
    steps = [[(line["step"], line.get("loss")) for line in _lines(tmp_path / run)] for run in ("whole", "cut")]
    assert steps[0] == steps[1]


def test_lines_after_the_checkpoint_are_written_once(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    asked = iter(range(100))
    with pytest.raises(TerminatedError):
        _train(job, folder, told_to_stop=lambda: next(asked) == 2)
    with (folder / "metrics.jsonl").open("a") as out:
        out.write('{"step": 30, "loss": 1.0}\n{"step": 4')  # what a killed process leaves
    _train(job, folder)
    assert [line["step"] for line in _lines(folder) if "loss" in line] == [10, 20, 30, 40]


@pytest.mark.parametrize("lost_bytes", [1, 30])  # the line end alone, and a part of the last line
def test_metrics_that_a_power_cut_shortened_go_on_with_whole_lines(
    folder: Path, shard: ShardRef, lost_bytes: int
) -> None:
    job, metrics = small_job(folder, shard), folder / "metrics.jsonl"
    asked = iter(range(100))
    with pytest.raises(TerminatedError):
        _train(job, folder, told_to_stop=lambda: next(asked) == 2)
    os.truncate(metrics, metrics.stat().st_size - lost_bytes)
    _train(job, folder)
    assert b"\0" not in metrics.read_bytes()
    assert [line["step"] for line in _lines(folder) if "loss" in line] == [10, 30, 40]


def test_a_line_of_the_metrics_that_is_no_json_is_not_drawn(tmp_path: Path) -> None:
    good = '{"step": 10, "loss": 1.0}\n{"step": 20, "nll": 5.0}\n'
    (tmp_path / "metrics.jsonl").write_text("\0\0\0\n" + good + '7\n{"loss": 2.0}\n{"step": 30, "lo')
    (tmp_path / "clean.jsonl").write_text(good)
    plot_training(tmp_path / "damaged.png", tmp_path / "metrics.jsonl")
    plot_training(tmp_path / "clean.png", tmp_path / "clean.jsonl")
    assert (tmp_path / "damaged.png").read_bytes() == (tmp_path / "clean.png").read_bytes()


def test_the_best_weights_ship_not_the_last(folder: Path, shard: ShardRef) -> None:
    # At this rate the network only gets worse than it was untrained.
    hyper = {"learning_rate": 10.0, "warmup_steps": 0, "evaluate_every_steps": 2, "max_steps": 4}
    job = small_job(folder, shard, hyper=hyper)
    module, progress = _train(job, folder)
    report = evaluate(rate_function(module), load_data(job).holdout, "challenger")
    scores = [line["nll"] for line in _lines(folder) if "nll" in line]
    assert progress.best_step == 0
    assert scores[0] < scores[-1]
    assert report.nll == pytest.approx(scores[0], rel=1e-5)


def test_patience_ends_a_run_that_gets_no_better(folder: Path, shard: ShardRef) -> None:
    # So slow that nothing changes; 40 steps: patience is lost from step 20 on.
    hyper = {
        "learning_rate": 1e-30,
        "warmup_steps": 0,
        "evaluate_every_steps": 2,
        "patience_evaluations": 3,
        "max_steps": 40,
    }
    _, progress = _train(small_job(folder, shard, hyper=hyper), folder)
    assert progress.status == "early_stop"
    assert 20 <= progress.step < 40
    assert progress.loss_last > 0  # of steps that no line had told of yet


def test_the_time_limit_ends_a_run(folder: Path, shard: ShardRef) -> None:
    _, progress = _train(small_job(folder, shard, hyper={"train_s": 0.001}), folder)
    assert progress.status == "time_limit"
    assert progress.step == 10  # the ranks agree every ten steps


def test_the_deadline_of_the_job_is_kept_too(folder: Path, shard: ShardRef) -> None:
    _, progress = _train(small_job(folder, shard, deadline_s=0.001), folder)
    assert progress.status == "time_limit"


def test_gradients_that_stay_non_finite_are_an_error(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard, hyper={"learning_rate": 1e30, "warmup_steps": 0, "evaluate_every_steps": 100})
    with pytest.raises(TrainingError, match="11 steps in a row") as caught:
        _train(job, folder)
    assert "learning_rate" in caught.value.hint


def test_one_bad_step_is_skipped_and_counted(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    torch.manual_seed(0)
    module, calls = build_module(job.model), iter(range(1000))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan") if next(calls) == 5 else gradient

    next(module.parameters()).register_hook(spoil)
    progress = train(job, module, load_data(job), Ranks(), folder=folder, told_to_stop=lambda: False)
    assert progress.skipped == 1
    assert progress.step == 40
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_a_score_that_is_not_finite_is_an_error(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard)
    module = build_module(job.model)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="hold-out score"):
        train(job, module, load_data(job), Ranks(), folder=folder, told_to_stop=lambda: False)


def test_a_run_that_diverges_after_it_had_learned_keeps_its_best_weights_and_says_so(
    folder: Path, shard: ShardRef
) -> None:
    # Twenty steps are learned from; then somebody multiplies every gradient's effect by a million.
    job = small_job(folder, shard, hyper={"max_steps": 200, "evaluate_every_steps": 5})
    module, data = build_module(job.model), load_data(job)

    def spoil(optimiser: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        if len(_lines(folder)) > 6:
            for group in optimiser.param_groups:
                group["lr"] = 10.0

    handle = register_optimizer_step_pre_hook(spoil)
    try:
        progress = train(job, module, data, Ranks(), folder=folder, told_to_stop=lambda: False)
    finally:
        handle.remove()
    assert progress.status == "diverged"
    assert progress.step < 100
    assert 0 < progress.best_step < progress.step
    assert evaluate(rate_function(module), data.holdout, "x").nll == pytest.approx(progress.best_score, rel=1e-4)


def test_a_run_that_diverges_from_its_first_step_is_an_error(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard, hyper={"learning_rate": 10.0, "warmup_steps": 0, "evaluate_every_steps": 2})
    with pytest.raises(TrainingError, match="diverged") as caught:
        _train(job, folder)
    assert "learning_rate" in caught.value.hint


def test_a_frame_that_poisons_its_batch_is_named(
    folder: Path, shard: ShardRef, caplog: pytest.LogCaptureFixture
) -> None:
    class Poisoned(nn.Module):
        """Not a number for every frame like one of them."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, counts_NCE: torch.Tensor) -> torch.Tensor:
            bad_N = counts_NCE.amax(dim=(1, 2)) > 40
            return self.inner(counts_NCE) / (~bad_N)[:, None, None]

    counts = simulated_counts(200)
    held = held_out(np.arange(200, dtype=np.uint64), 200)
    number = int(np.flatnonzero(~held)[7])
    counts[number, 0, 0] = 255
    other = staged_frames(folder / "stage", counts)
    job = small_job(folder, other, hyper={"max_epochs": 1, "batch_frames": 8})
    progress = train(
        job, Poisoned(build_module(job.model)), load_data(job), Ranks(), folder=folder, told_to_stop=lambda: False
    )
    assert progress.skipped == 1
    (warning,) = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert f"shard {other.shard_id}, run 1, pulse {number}" in warning


def _one_loss(job: TrainJob) -> tuple[float, Frames]:
    """Mean loss of all frames to train on, by weights that know nothing."""
    torch.manual_seed(1)
    data = load_data(job)
    hyper = job.hyper.model_copy(update={"batch_frames": data.frames})
    plan = BatchPlan(data.pool.orders, hyper, 0)
    data.pool.start(plan, 0)
    frames = data.pool.take(plan, 0, slice(0, data.frames))
    data.pool.close()
    with torch.no_grad():
        return float(loss_N(build_module(job.model), frames).mean()), frames


def test_a_frame_that_stands_for_three_counts_three_times(tmp_path: Path) -> None:
    counts = simulated_counts(300)
    pulse_id = np.arange(300, dtype=np.uint64)
    weight = np.where(pulse_id % 2 == 0, 3.0, 1.0).astype(np.float32)
    block = FrameBlock(run_number=1, pulse_id_N=pulse_id, counts_NCE=counts, flags_N=np.zeros(300, np.uint8))
    ref = shard_ref(write_shard(tmp_path, block, frames_per_chunk=1024, weight_N=weight))
    job = small_job(tmp_path / "run", ref)
    loss, frames = _one_loss(job)
    assert frames.weight_NC1 is not None
    torch.manual_seed(1)
    each = loss_N(build_module(job.model), replace(frames, weight_NC1=None)).detach().numpy()
    trained = np.flatnonzero(~held_out(pulse_id, 200))[frames.batch.index_N]
    assert loss == pytest.approx(float(np.average(each, weights=weight[trained])), rel=1e-5)

    holdout = load_data(job).holdout
    assert holdout.digest() != replace(holdout, weight_N=None).digest()
    torch.manual_seed(2)
    module = build_module(job.model)
    weighted, plain = (evaluate(rate_function(module), h, "x") for h in (holdout, replace(holdout, weight_N=None)))
    expected = np.average(plain.nll_frames, weights=weight[holdout.pulse_id_N.astype(int)])
    assert weighted.nll == pytest.approx(expected, rel=1e-6)


def test_a_dead_channel_is_neither_learned_nor_scored(tmp_path: Path) -> None:
    counts = simulated_counts(300)
    counts[:, 5] = 0
    job = small_job(tmp_path / "run", staged_frames(tmp_path, counts))
    _, frames = _one_loss(job)
    assert frames.weight_NC1 is not None
    assert frames.weight_NC1[:, 5].abs().max() == 0
    assert frames.weight_NC1[:, :5].min() == 1

    class Answer(nn.Module):
        """The same rate everywhere, but for the dead channel."""

        def __init__(self, dead_rate: float) -> None:
            super().__init__()
            self.rate_CE = nn.Parameter(torch.full((16, 128), 0.3))
            self.rate_CE.data[5] = dead_rate

        def forward(self, counts_NCE: torch.Tensor) -> torch.Tensor:
            return self.rate_CE.expand(counts_NCE.shape)

    answer = Answer(0.3)
    loss_N(answer, frames).sum().backward()
    assert answer.rate_CE.grad is not None
    assert answer.rate_CE.grad[5].abs().max() == 0
    assert answer.rate_CE.grad[4].abs().max() > 0
    holdout = load_data(job).holdout
    nll = [evaluate(rate_function(Answer(rate).requires_grad_(False)), holdout, "x").nll for rate in (0.3, 30.0)]
    assert nll[0] == pytest.approx(nll[1])


def test_gains_are_taken_out_of_what_the_network_sees_and_put_back_into_what_it_is_scored_on(tmp_path: Path) -> None:
    # Two shards of a flat beam; in the second, channel 3 counts half of what it did.
    rng = np.random.default_rng(1)
    rate = np.full((16, 128), 0.8)
    low = rate.copy()
    low[3] *= 0.5
    refs = [
        staged_frames(tmp_path, rng.poisson(each, (600, 16, 128)).astype(np.uint8), seq=seq, first_pulse_id=1000 * seq)
        for seq, each in enumerate((rate, low))
    ]
    data = load_data(small_job(tmp_path / "run", *refs, hyper={"normalise_gain": True}))
    holdout = data.holdout
    assert holdout.gain_NC is not None
    is_low = holdout.pulse_id_N >= 1000
    # The reference is the pooled 0.75 of the first; a shard's gain is good to 0.5 %.
    np.testing.assert_allclose(holdout.gain_NC[is_low][:, 3], 2 / 3, rtol=0.02)
    np.testing.assert_allclose(holdout.gain_NC[~is_low][:, 3], 4 / 3, rtol=0.02)
    np.testing.assert_allclose(np.delete(holdout.gain_NC, 3, axis=1), 1.0, rtol=0.02)
    seen = holdout.model_input()[:, 3].mean(axis=1)
    assert seen[is_low].mean() == pytest.approx(seen[~is_low].mean(), rel=0.05)
    expected = holdout.expected(np.full(holdout.counts_NCE.shape, 0.6, np.float32))[:, 3]
    assert expected[is_low].mean() / expected[~is_low].mean() == pytest.approx(0.5, rel=0.03)
    assert data.pool.gain_SC is not None


def test_training_with_every_option_lowers_the_score(folder: Path, shard: ShardRef) -> None:
    job = small_job(folder, shard, hyper={"normalise_gain": True, "precision": "bfloat16", "loader_mb": 0.001})
    _, progress = _train(job, folder)
    scores = [line["nll"] for line in _lines(folder) if "nll" in line]
    assert scores[-1] < scores[0] - 50
    assert 0 < progress.loader_idle_share < 1


def test_labelled_training_learns_the_labels(folder: Path, tmp_path: Path) -> None:
    counts = simulated_counts(400)
    shard = staged_frames(tmp_path / "stage", counts, label_NCE=counts.astype("float32") / 7)
    _, progress = _train(small_job(folder, shard, hyper={"mode": "labelled"}), folder)
    scores = [line["mse"] for line in _lines(folder) if "mse" in line]
    assert scores[-1] < 0.9 * scores[0]  # the least possible is that of the true rate, about 0.6
    assert progress.best_score == min(scores)
