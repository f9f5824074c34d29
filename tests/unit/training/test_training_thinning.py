from __future__ import annotations

import numpy as np
import torch

from filmloop.core.holdout import splitmix64
from filmloop.training.thinning import mix64, thin


def _counts(frames: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).poisson(0.4, (frames, 8, 32)).astype(np.uint8))


def test_the_hash_is_the_one_of_the_core() -> None:
    numbers = np.arange(1000, dtype=np.uint64) * np.uint64(0x1234567890ABCDEF)
    ours = mix64(torch.from_numpy(numbers.view(np.int64))).numpy().view(np.uint64)
    assert np.array_equal(ours, splitmix64(numbers))


def test_the_two_parts_add_up_to_the_counts() -> None:
    counts = _counts()
    kept, rest = thin(counts, torch.full((64,), 0.7), torch.arange(64))
    assert torch.equal(kept + rest, counts.float())
    assert (kept >= 0).all()
    assert (rest >= 0).all()


def test_a_frame_is_split_alike_in_any_batch() -> None:
    counts, keep, draw = _counts(), torch.linspace(0.5, 0.95, 64), torch.arange(64) * 977
    whole, _ = thin(counts, keep, draw)
    part, _ = thin(counts[20:31], keep[20:31], draw[20:31])
    assert torch.equal(whole[20:31], part)


def test_another_draw_splits_otherwise() -> None:
    counts, keep = _counts(), torch.full((64,), 0.5)
    assert not torch.equal(thin(counts, keep, torch.arange(64))[0], thin(counts, keep, torch.arange(64) + 64)[0])


def test_kept_counts_are_binomial() -> None:
    # 4000 frames of one bin with 20 counts: mean 14 +- 0.03, variance 4.2 +- 0.1 (one standard error each).
    kept, _ = thin(torch.full((4000, 1, 1), 20, dtype=torch.uint8), torch.full((4000,), 0.7), torch.arange(4000))
    assert abs(float(kept.mean()) - 14.0) < 0.15
    assert abs(float(kept.var()) - 4.2) < 0.5


def test_neighbouring_bins_are_split_independently() -> None:
    kept, _ = thin(torch.ones(2000, 1, 64, dtype=torch.uint8), torch.full((2000,), 0.5), torch.arange(2000))
    correlation = np.corrcoef(kept.reshape(2000, 64).numpy().T) - np.eye(64)
    assert np.abs(correlation).max() < 0.12  # 4032 pairs, standard error 0.022: five of them


def test_an_empty_batch_of_counts_stays_empty() -> None:
    kept, rest = thin(torch.zeros(3, 4, 8, dtype=torch.uint8), torch.full((3,), 0.5), torch.arange(3))
    assert kept.sum() == 0
    assert rest.sum() == 0
