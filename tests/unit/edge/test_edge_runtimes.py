from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from filmloop.core.errors import ConfigError, VerificationError
from filmloop.edge.runtimes import TorchRuntime, check_finite, check_golden, make_runtime
from filmloop.testing.models import make_model_bundle
from filmloop_models.cookiebox.physics import streaking_phase

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


class Tilted(nn.Module):
    """Rates twice the counts but for a few thousandths, which move the mean energies as streaking does."""

    def __init__(self, tilt):
        super().__init__()
        along_CE = torch.cos(torch.arange(16) * torch.pi / 8)[:, None] * torch.linspace(-1, 1, 32)
        self.gain_CE = nn.Parameter(1 + tilt * along_CE)

    def forward(self, counts):
        return counts * 2 * self.gain_CE


@pytest.mark.parametrize("unclear", [[], [0], [0, 3, 4, 5]])
def test_the_keys_of_frames_that_have_no_clear_one_count_for_nothing(unclear):
    """A single frame is inferred, too, and which one that is must not be by chance."""
    counts = np.full((12, 16, 32), 10, np.uint8)
    counts[:, 4, 0] = 11  # hardly anything, against what is off
    energy = 16 + 8 * np.cos(2 * np.pi * (np.arange(16) / 16 - np.arange(12)[:, None] / 12))
    for frame in set(range(12)) - set(unclear):
        counts[frame, np.arange(16), energy[frame].astype(int)] = 250
    served = TorchRuntime(Tilted(0.004), version="3", frame_shape=(16, 32), batch_frames=8, sort_key=streaking_phase)
    golden = counts * np.float32(2)
    keys = [streaking_phase(rates) for rates in (golden, served.infer(counts))]
    apart = np.abs(np.angle(np.exp(1j * (keys[1] - keys[0]))))
    assert sorted(np.flatnonzero(~(apart < 0.05))) == unclear
    assert check_golden(served, counts, golden, tolerance=0.05, sort_key=streaking_phase) < 0.01


def test_an_output_that_is_not_a_number_or_of_another_shape_never_passes():
    counts, golden = np.ones((2, *SHAPE), np.uint8), np.ones((2, *SHAPE), np.float32)
    with pytest.raises(VerificationError):
        check_golden(runtime(Scaled(float("nan"))), counts, golden, tolerance=1e-3)
    with pytest.raises(VerificationError, match="shape"):
        check_golden(runtime(nn.Flatten()), counts, golden, tolerance=1e-3)


class Ratio(nn.Module):
    """Finite for every frame of a detector but the empty one, or the one above `limit`."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, counts):
        total = counts.sum(dim=(1, 2), keepdim=True)
        return counts / (total if self.limit is None else self.limit - counts).clamp(min=0)


@pytest.mark.parametrize(("limit", "kind"), [(None, "an empty"), (255.0, "a saturated")])
def test_a_network_that_fails_at_an_extreme_frame_alone_is_refused(limit, kind):
    with pytest.raises(VerificationError, match=f"not finite of {kind} frame"):
        check_finite(runtime(Ratio(limit)), SHAPE, 8)
    check_finite(runtime(), SHAPE, 8)


def test_a_runtime_is_made_by_its_name(tmp_path):
    bundle = make_model_bundle(tmp_path / "bundle", frame_shape=(4, 16))
    made = make_runtime("torch", bundle, version="3", frame_shape=(4, 16), batch_frames=8)
    assert (made.name, made.version) == ("torch", "3")
    with pytest.raises(ConfigError, match="openvino"):
        make_runtime("openvino", bundle, version="3", frame_shape=(4, 16), batch_frames=8)
