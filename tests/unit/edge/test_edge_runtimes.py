from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from filmloop.core.errors import VerificationError
from filmloop.edge.runtimes import TorchRuntime, check_golden

SHAPE = (3, 5)


class Scaled(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, counts):
        return counts * self.factor + 0.5


def runtime(module=None, batch_frames=8):
    return TorchRuntime(module or Scaled(), version="3", frame_shape=SHAPE, batch_frames=batch_frames)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 30])
def test_any_number_of_frames_is_inferred_whatever_the_batch(frames):
    counts = np.random.default_rng(frames).integers(0, 9, (frames, *SHAPE)).astype(np.uint8)
    rate = runtime().infer(counts)
    assert rate.dtype == np.float32
    np.testing.assert_array_equal(rate, counts * 2.0 + 0.5)


def test_read_only_and_scaled_counts_are_fine():
    counts = np.ones((2, *SHAPE), np.uint8)
    counts.flags.writeable = False
    np.testing.assert_array_equal(runtime().infer(counts), 2.5)
    np.testing.assert_array_equal(runtime().infer(counts.astype(np.float32) / 4), 1.0)


def test_the_golden_pair_passes_within_the_tolerance_and_not_beyond():
    counts = np.full((4, *SHAPE), 3, np.uint8)
    golden = np.full((4, *SHAPE), 6.5, np.float32)
    assert check_golden(runtime(), counts, golden, tolerance=1e-3) == 0
    assert check_golden(runtime(), counts, golden * np.float32(1.0005), tolerance=1e-3) > 0
    with pytest.raises(VerificationError, match="golden"):
        check_golden(runtime(), counts, golden * np.float32(1.002), tolerance=1e-3)


def test_an_output_that_is_not_a_number_or_of_another_shape_never_passes():
    counts, golden = np.ones((2, *SHAPE), np.uint8), np.ones((2, *SHAPE), np.float32)
    with pytest.raises(VerificationError):
        check_golden(runtime(Scaled(float("nan"))), counts, golden, tolerance=1e-3)
    with pytest.raises(VerificationError, match="shape"):
        check_golden(runtime(nn.Flatten()), counts, golden, tolerance=1e-3)
