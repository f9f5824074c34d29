from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from filmloop_models import catalog
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

SHAPES = {"mixer": (16, 128), "unrolled": (16, 128), "cookienet": (16, 128), "cookienet128": (128, 128)}
# The published graph has 208,641. The unrolled one learns 24 places, 16 gains, 2 widths, 2 backgrounds and the kick.
PARAMETERS = {"mixer": 51_872, "unrolled": 45, "cookienet": 208_641, "cookienet128": 208_641}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return catalog.get(name).module(SHAPES[name])


def counts(name: str, frames: int = 3) -> torch.Tensor:
    simulator = CookieBoxSimulator(Conditions(), seed=4, frame_shape=SHAPES[name])
    return torch.from_numpy(simulator.frames(0, frames).counts_NCE.astype(np.float32))


@pytest.mark.parametrize("name", SHAPES)
def test_rates_have_the_shape_of_the_counts_and_start_low(name: str) -> None:
    rates = build(name)(counts(name))
    assert rates.shape == (3, *SHAPES[name])
    assert rates.dtype == torch.float32
    assert (rates > 0).all()
    # The bias of -3 alone is a rate of 0.049; the bright defaults have 0.3 counts a bin.
    assert 0.02 < rates.mean() < 0.3


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_as_documented(name: str) -> None:
    assert sum(parameter.numel() for parameter in build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["mixer", "cookienet"])  # the unrolled one has no random weights
@pytest.mark.parametrize("seed", range(6))
def test_no_seed_starts_dead(name: str, seed: int) -> None:
    """The published final ReLU gives zero output and zero gradient for 6 seeds of 8."""
    network = build(name, seed)
    x = counts(name)
    rates = network(x)
    assert rates.std() > 1e-4
    (rates - x * rates.log()).mean().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize(("name", "frames"), [("mixer", 64), ("cookienet", 8)])
def test_thirty_steps_of_poisson_likelihood_already_beat_the_flat_rate(name: str, frames: int) -> None:
    network, x = build(name), counts(name, frames)
    flat = float((x.mean() - x * x.mean().log()).mean())
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(30):
        rates = network(x)
        loss = (rates - x * rates.log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < flat - 0.02


@pytest.mark.parametrize("name", SHAPES)
def test_it_exports_to_onnx_with_a_free_batch_size(name: str, tmp_path: Path) -> None:
    network = build(name).eval()
    x = counts(name, 5)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own deprecations
        program = torch.onnx.export(
            network, (x[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("frames")},), verbose=False
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (rates,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(rates, network(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_the_mixer_takes_other_frames_and_sizes() -> None:
    network = catalog.get("mixer").module((128, 128), {"features": 32, "angle_features": 8, "depth": 1})
    assert network(torch.zeros(2, 128, 128)).shape == (2, 128, 128)
    assert network(torch.zeros(0, 128, 128)).shape == (0, 128, 128)
