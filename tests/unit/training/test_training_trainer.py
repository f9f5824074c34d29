from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from filmloop.core.documents import ShardRef, TrainJob
from filmloop.core.errors import TerminatedError, TrainingError
from filmloop.testing.training import simulated_counts, small_job, staged_frames
from filmloop.training.data import load_data
from filmloop.training.evaluate import evaluate, rate_function
from filmloop.training.load import build_module
from filmloop.training.plots import plot_training
from filmloop.training.progress import Progress
from filmloop.training.ranks import Ranks
from filmloop.training.trainer import train


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
    whole, _ = _train(small_job(tmp_path / "whole", shard), tmp_path / "whole")

    asked = iter(range(100))
    with pytest.raises(TerminatedError, match="step 20"):
        _train(small_job(tmp_path / "cut", shard), tmp_path / "cut", told_to_stop=lambda: next(asked) == 2)
    cut, progress = _train(small_job(tmp_path / "cut", shard), tmp_path / "cut")

    assert progress.resumed_from_step == 20
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


def test_labelled_training_learns_the_labels(folder: Path, tmp_path: Path) -> None:
    counts = simulated_counts(400)
    shard = staged_frames(tmp_path / "stage", counts, label_NCE=counts.astype("float32") / 7)
    _, progress = _train(small_job(folder, shard, hyper={"mode": "labelled"}), folder)
    scores = [line["mse"] for line in _lines(folder) if "mse" in line]
    assert scores[-1] < 0.9 * scores[0]  # the least possible is that of the true rate, about 0.6
    assert progress.best_score == min(scores)
