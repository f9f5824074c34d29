from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from filmloop.training.export import export_onnx
from filmloop_models import catalog
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.gaussian import TunedGaussian
from filmloop_models.cookiebox.score import mse_after_gain_and_shift
from filmloop_models.cookiebox.simulator import CookieBoxSimulator, SimulatedFrames
from filmloop_models.cookiebox.unrolled import Unrolled, _ring_matrices, _ring_product

SHAPE = (16, 128)


def build(**hyper: float | str) -> Unrolled:
    network = catalog.get("unrolled").module(SHAPE, hyper)
    assert isinstance(network, Unrolled)
    return network


def simulated(frames: int, **conditions: float) -> SimulatedFrames:
    return CookieBoxSimulator(Conditions(**conditions), seed=7).frames(0, frames, truth=True)


def as_input(frames: SimulatedFrames) -> torch.Tensor:
    return torch.from_numpy(frames.counts_NCE.astype(np.float32))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_folded_ring_product_is_the_whole_product(backwards: bool) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 3, 2)
    value = torch.randn(5, 8, 3)
    whole = torch.zeros(5, 8, 2)
    for p in range(8):
        for q in range(8):
            whole[:, q] += value[:, p] @ kernel[(p - q) % 8]
    folded = _ring_product(value.flatten(1), _ring_matrices(kernel)).reshape(5, 8, 2)
    torch.testing.assert_close(folded, whole, rtol=1e-4, atol=1e-4)
    assert sum(matrix.numel() for matrix in _ring_matrices(kernel)) == 8 * 3 * 8 * 2 * 3 // 8


def test_turning_the_ring_turns_the_rates() -> None:
    network, x = build(), as_input(simulated(8))
    with torch.no_grad():
        for parameter in (network.width, network.background, network.place_J, network.kick):
            parameter.add_(0.01 * torch.randn(parameter.shape))
        torch.testing.assert_close(network(x.roll(3, 1)), network(x).roll(3, 1), rtol=1e-3, atol=1e-4)


def test_scaled_counts_give_scaled_rates() -> None:
    """But for dark counts: a gain of the detector is no drift for it."""
    network, x = build(), as_input(simulated(8))
    with torch.no_grad():
        network.background[0] = -2.0  # no dark counts
        torch.testing.assert_close(network(4 * x), 4 * network(x), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("hits_per_pulse", "least"), [(16.0, 0.7), (200.0, 0.9)])
def test_untrained_it_beats_a_gaussian_tuned_on_labels(hits_per_pulse: float, least: float) -> None:
    frames = simulated(256, hits_per_pulse=hits_per_pulse)
    with torch.no_grad():
        rates = build()(as_input(frames)).numpy()
    gaussian = TunedGaussian.tune_to_labels(frames.counts_NCE, frames.signal_NCE)
    of_gaussian = mse_after_gain_and_shift(gaussian.rate(frames.counts_NCE), frames.signal_NCE)[0]
    assert mse_after_gain_and_shift(rates, frames.signal_NCE)[0] < least * of_gaussian


def test_it_learns_the_kick_from_counts_alone() -> None:
    frames = simulated(128)
    x = as_input(frames)
    network = build(kick_bin=30.5, powers="2,1")
    optimiser = torch.optim.Adam(network.parameters(), lr=6e-3)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(16):
        part = rng.integers(0, len(x), 24)
        kept = torch.from_numpy(rng.binomial(frames.counts_NCE[part], 0.7).astype(np.float32))
        rate = network(kept / 0.7) * 0.3
        loss = (rate - (x[part] - kept) * rate.log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    kick_bin = 30.5 * float((2.0 * network.kick.detach()).exp())
    assert abs(kick_bin - 32.0) < 0.75  # it was 1.5 off
    assert np.isfinite(losses).all()


def test_empty_and_extreme_frames_give_finite_positive_rates() -> None:
    x = torch.zeros(4, *SHAPE)
    x[1] = 255.0
    x[2, 0, 0] = 1.0
    x[3, :, 127] = 255.0
    rates = build()(x)
    assert torch.isfinite(rates).all()
    assert (rates > 0).all()


def test_a_dead_channel_is_learned_as_one_without_gain() -> None:
    network = build()
    x = as_input(simulated(64))
    x[:, 5] = 0.0
    rate = network(x)
    (rate - x * rate.log()).mean().backward()
    assert network.gain_C.grad is not None
    assert int(network.gain_C.grad.argmax()) == 5  # descent lowers it most


def test_the_exported_file_computes_the_same(tmp_path: Path) -> None:
    network, x = build().eval(), as_input(simulated(5))
    x[1] = 0.0
    export_onnx(network, SHAPE, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (rates,) = session.run(None, {"counts_NCE": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(rates, network(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("powers", ["", "2;1", "0,1", "two"])
def test_powers_that_are_none_are_refused(powers: str) -> None:
    with pytest.raises(ValueError, match="whole numbers from 1"):
        build(powers=powers)
