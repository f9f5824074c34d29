from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filmloop.bootstrap import Site
from filmloop.checks.site import check_site
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import ModelChoice, ShardRef
from filmloop.core.errors import ConfigError
from filmloop.testing.training import small_job
from filmloop.training.entry import main
from filmloop.training.load import build_module
from filmloop.training.trial import try_network
from filmloop_models import catalog
from filmloop_models.spec import ModelSpec


class Blur(nn.Module):
    """As little as a network may be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, counts_NCE: Tensor) -> Tensor:
        return nn.functional.softplus(counts_NCE * self.weight - 3.0)


class WithoutLastBin(Blur):
    def forward(self, counts_NCE: Tensor) -> Tensor:
        return super().forward(counts_NCE)[..., :-1]


class Twice(Blur):
    def forward(self, counts_NCE: Tensor):  # type: ignore[no-untyped-def]
        return super().forward(counts_NCE), counts_NCE


class BelowZero(Blur):
    def forward(self, counts_NCE: Tensor) -> Tensor:
        return -super().forward(counts_NCE)


class NoNumber(Blur):
    def forward(self, counts_NCE: Tensor) -> Tensor:
        return super().forward(counts_NCE) * float("nan")


class Raises(Blur):
    def forward(self, counts_NCE: Tensor) -> Tensor:
        raise KeyError("taps")


class Frozen(Blur):
    def __init__(self) -> None:
        super().__init__()
        self.weight.requires_grad_(False)


class Shared(Blur):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.weight


class NotOnlyTensors(Blur):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 1}


class Fourier(Blur):
    def forward(self, counts_NCE: Tensor) -> Tensor:
        return super().forward(torch.fft.irfft(torch.fft.rfft(counts_NCE), n=counts_NCE.shape[-1]))


UNFIT = {
    "WithoutLastBin": r"for counts \(2, 16, 128\) it gives rates \(2, 16, 127\)",
    "Twice": "it gives a tuple, not a tensor of rates",
    "BelowZero": "below 0 or no numbers",
    "NoNumber": "below 0 or no numbers",
    "Raises": "it raised KeyError: 'taps'",
    "Frozen": "no parameter that can be trained",
    "Shared": "cannot be shipped: Some tensors share memory",
    "NotOnlyTensors": "cannot be shipped",
    "str": "build gave a str",
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModelChoice]:
    """Names a network of this module as a site file does."""
    monkeypatch.setitem(sys.modules, "own_networks", sys.modules[__name__])

    def choice(network: str) -> ModelChoice:
        made = {"str": str, **globals()}[network]
        spec = ModelSpec(name=network, summary="", build=lambda shape: made())
        monkeypatch.setattr(sys.modules[__name__], "SPEC", spec, raising=False)
        return ModelChoice(name="own_networks:SPEC", frame_shape=(16, 128))

    return choice


@pytest.mark.parametrize(("network", "says"), UNFIT.items())
def test_a_network_that_the_loop_cannot_use_is_a_config_error(own, network: str, says: str) -> None:
    choice = own(network)
    with pytest.raises(ConfigError, match=says) as caught:
        try_network(build_module(choice), choice)
    assert "add-a-model.md" in caught.value.hint


@pytest.mark.parametrize("name", [name for name in catalog.names() if name != "cookienet128"])
def test_a_network_of_the_catalog_passes_and_is_left_as_it_was(name: str) -> None:
    choice = ModelChoice(name=name, frame_shape=(16, 128))
    module = build_module(choice)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    try_network(module, choice)
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def _train(folder: Path, shard: ShardRef, choice: ModelChoice) -> tuple[int, str]:
    job = small_job(folder, shard, hyper={"max_steps": 3}).model_copy(update={"model": choice})
    job.write(folder / "job.json")
    code = main([str(folder / "job.json")])
    return code, json.loads((folder / "error.json").read_text())["message"] if code else ""


def test_a_network_that_fits_is_trained(folder: Path, shard: ShardRef, own) -> None:
    assert _train(folder, shard, own("Blur")) == (0, "")


@pytest.mark.parametrize("network", ["WithoutLastBin", "Shared"])
def test_training_with_an_unfit_network_ends_before_its_first_step(
    folder: Path, shard: ShardRef, own, network: str
) -> None:
    code, message = _train(folder, shard, own(network))
    assert code == 2, message
    assert not (folder / "metrics.jsonl").exists()


def test_a_network_that_onnx_does_not_know_is_a_config_error(folder: Path, shard: ShardRef, own) -> None:
    code, message = _train(folder, shard, own("Fourier"))
    assert (code, "cannot be exported to ONNX" in message, "fft" in message) == (2, True, True), message


@pytest.mark.parametrize(
    ("network", "state", "says"),
    [("Blur", "ok", "1 parameters"), ("Twice", "fail", "it gives a tuple"), ("Fourier", "fail", "ONNX")],
)
def test_the_site_check_tries_the_network(tmp_path: Path, own, network: str, state: str, says: str) -> None:
    config = parse_site({"model": {"name": own(network).name}})
    site = Site(file=tmp_path / "site.toml", config=config, home=Home(tmp_path / "home"))
    found = next(finding for finding in check_site(site) if finding.item == "model")
    assert (found.state, says in found.detail) == (state, True), found
