from __future__ import annotations

import numpy as np
import pytest

from filmloop.core.documents import TrainHyper
from filmloop.training.plan import FRESH, REPLAY, BatchPlan, FrameOrder, learning_rate, spent


def _plan(frames: int, hyper: TrainHyper, seed: int, *, replay: int = 0) -> BatchPlan:
    """A plan over blocks of ten frames that all stay in memory."""
    sets = [[10] * (frames // 10), [10] * (replay // 10)]
    fresh, old = (
        FrameOrder(blocks, window_blocks=max(len(blocks), 1), seed=seed, stream=stream)
        for blocks, stream in zip(sets, (FRESH, REPLAY), strict=True)
    )
    return BatchPlan((fresh, old), hyper, seed)


def test_every_frame_comes_once_an_epoch() -> None:
    plan = _plan(100, TrainHyper(batch_frames=20), seed=1)
    first = np.concatenate([plan.batch(step).index_N for step in range(5)])
    second = np.concatenate([plan.batch(step).index_N for step in range(5, 10)])
    assert sorted(first) == list(range(100))
    assert sorted(second) == list(range(100))
    assert not np.array_equal(first, second)


def test_epochs_follow_each_other_without_a_seam() -> None:
    plan = _plan(30, TrainHyper(batch_frames=64), seed=1)
    indices = np.concatenate([plan.batch(step).index_N for step in range(15)])
    assert np.bincount(indices).tolist() == [32] * 30  # 960 places over 30 frames


@pytest.mark.parametrize("window_blocks", [1, 3, 7])
def test_a_window_is_used_up_before_the_next_but_one_begins(window_blocks: int) -> None:
    sizes = [5, 1, 9, 4, 4, 10, 2]
    order = FrameOrder(sizes, window_blocks=window_blocks, seed=3)
    block_of = np.repeat(np.arange(7), sizes)
    for epoch in range(3):
        indices = order.index(epoch * 35, (epoch + 1) * 35)
        assert sorted(indices) == list(range(35))
        seen = [set(order.blocks(window)) for window, _, _ in order.pieces(epoch * 35, (epoch + 1) * 35)]
        assert sorted(block for blocks in seen for block in blocks) == list(range(7))
        assert max(map(len, seen)) <= window_blocks
        place = 0
        for (_, first, last), blocks in zip(order.pieces(epoch * 35, (epoch + 1) * 35), seen, strict=True):
            assert set(block_of[indices[place : place + last - first]]) == blocks
            place += last - first
    assert np.array_equal(order.index(50, 90), np.concatenate([order.index(50, 63), order.index(63, 90)]))


def test_a_stated_share_of_each_batch_is_replayed() -> None:
    plan = _plan(1000, TrainHyper(batch_frames=20, replay_share=0.3, max_steps=10**6, max_epochs=2), 1, replay=60)
    batches = [plan.batch(step).index_N for step in range(30)]
    assert [int((batch >= 1000).sum()) for batch in batches] == [6] * 30
    replayed = np.concatenate([batch[batch >= 1000] - 1000 for batch in batches])
    assert np.bincount(replayed).tolist() == [3] * 60
    assert plan.epochs(500) == pytest.approx(7.0)  # of the fresh ones
    assert plan.steps == 143


def test_one_kind_of_frames_fills_the_batch_where_there_is_no_other() -> None:
    only_old = _plan(0, TrainHyper(batch_frames=20, replay_share=0.3), 1, replay=60)
    assert only_old.sizes == (0, 20)
    assert only_old.epochs(3) == pytest.approx(1.0)
    assert _plan(60, TrainHyper(batch_frames=20, replay_share=0.3), 1).sizes == (20, 0)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    walked = _plan(500, TrainHyper(), seed=4)
    for step in range(9):
        walked.batch(step)
    there, jumped = walked.batch(9), _plan(500, TrainHyper(), seed=4).batch(9)
    assert np.array_equal(there.index_N, jumped.index_N)
    assert np.array_equal(there.keep_N, jumped.keep_N)
    assert np.array_equal(there.draw_N, jumped.draw_N)
    assert not np.array_equal(there.draw_N, _plan(500, TrainHyper(), seed=5).batch(9).draw_N)


def test_kept_shares_fill_the_range() -> None:
    keep = np.concatenate([_plan(500, TrainHyper(), seed=4).batch(step).keep_N for step in range(8)])
    assert 0.5 <= keep.min() < 0.51
    assert 0.94 < keep.max() <= 0.95


def test_the_tighter_of_steps_and_epochs_is_the_plan() -> None:
    assert _plan(1000, TrainHyper(batch_frames=100, max_epochs=3, max_steps=500), seed=0).steps == 30
    assert _plan(1000, TrainHyper(batch_frames=100, max_epochs=3, max_steps=7), seed=0).steps == 7


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
