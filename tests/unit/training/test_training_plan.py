from __future__ import annotations

import numpy as np
import pytest

from filmloop.core.documents import TrainHyper
from filmloop.training.plan import BatchPlan, learning_rate, spent


def test_every_frame_comes_once_an_epoch() -> None:
    plan = BatchPlan(100, TrainHyper(batch_frames=20), seed=1)
    first = np.concatenate([plan.batch(step).index_N for step in range(5)])
    second = np.concatenate([plan.batch(step).index_N for step in range(5, 10)])
    assert sorted(first) == list(range(100))
    assert sorted(second) == list(range(100))
    assert not np.array_equal(first, second)


def test_epochs_follow_each_other_without_a_seam() -> None:
    plan = BatchPlan(30, TrainHyper(batch_frames=64), seed=1)
    indices = np.concatenate([plan.batch(step).index_N for step in range(15)])
    assert np.bincount(indices).tolist() == [32] * 30  # 960 places over 30 frames


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    walked = BatchPlan(500, TrainHyper(), seed=4)
    for step in range(9):
        walked.batch(step)
    there, jumped = walked.batch(9), BatchPlan(500, TrainHyper(), seed=4).batch(9)
    assert np.array_equal(there.index_N, jumped.index_N)
    assert np.array_equal(there.keep_N, jumped.keep_N)
    assert np.array_equal(there.draw_N, jumped.draw_N)
    assert not np.array_equal(there.draw_N, BatchPlan(500, TrainHyper(), seed=5).batch(9).draw_N)


def test_kept_shares_fill_the_range() -> None:
    keep = np.concatenate([BatchPlan(500, TrainHyper(), seed=4).batch(step).keep_N for step in range(8)])
    assert 0.5 <= keep.min() < 0.51
    assert 0.94 < keep.max() <= 0.95


def test_the_tighter_of_steps_and_epochs_is_the_plan() -> None:
    assert BatchPlan(1000, TrainHyper(batch_frames=100, max_epochs=3, max_steps=500), seed=0).steps == 30
    assert BatchPlan(1000, TrainHyper(batch_frames=100, max_epochs=3, max_steps=7), seed=0).steps == 7


def _rate(step: int, elapsed_s: float = 0.0) -> float:
    hyper = TrainHyper(learning_rate=1.0, warmup_steps=10)
    share = spent(step=step, steps=1000, elapsed_s=elapsed_s, budget_s=60.0)
    return learning_rate(hyper, step=step, steps=1000, share=share)


def test_the_rate_rises_then_falls_to_zero() -> None:
    assert _rate(0) < 0.1
    assert _rate(10) == pytest.approx(1.0, abs=0.001)
    assert _rate(500) == pytest.approx(0.5)
    assert _rate(1000) == pytest.approx(0.0, abs=1e-12)


def test_a_slow_machine_ends_its_cosine_at_the_time_limit() -> None:
    assert _rate(100, elapsed_s=30.0) == pytest.approx(0.5)
    assert _rate(100, elapsed_s=90.0) == pytest.approx(0.0, abs=1e-12)


def test_a_short_run_does_not_end_inside_its_warm_up() -> None:
    hyper = TrainHyper(learning_rate=1.0, warmup_steps=100)
    assert learning_rate(hyper, step=4, steps=40, share=0.1) > 0.9
