from __future__ import annotations

import subprocess
import sys

import pytest

from filmloop_models import catalog
from filmloop_models.spec import ModelSpec

SPEC = ModelSpec(name="mine", summary="A model author's own.", build=lambda shape: None)
NOT_A_SPEC = "just text"


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    return "own_models"


def test_every_name_gives_its_spec() -> None:
    assert catalog.names() == ("mixer", "unrolled", "cookienet", "cookienet128")
    for name in catalog.names():
        spec = catalog.get(name)
        assert spec.name == name
        assert spec.sort_key is not None


def test_a_misspelt_name_is_answered_with_near_matches() -> None:
    with pytest.raises(
        ValueError, match=r"no model 'mixr': did you mean mixer\? The catalog has mixer, unrolled, cookienet"
    ):
        catalog.get("mixr")
    with pytest.raises(ValueError, match="no model 'zzz': The catalog has"):
        catalog.get("zzz")


def test_a_spec_of_another_package_is_found(own_module: str) -> None:
    assert catalog.get(f"{own_module}:SPEC") is SPEC


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_package.models:SPEC", "No module named 'no_such_package'"),
        ("own_models:ABSENT", "ABSENT"),
        ("own_models:NOT_A_SPEC", "it is a str, not a ModelSpec"),
        (":SPEC", "Empty module name"),
    ],
)
def test_a_spec_that_cannot_be_had_says_why(own_module: str, name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        catalog.get(name)


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("cookienet", (16, 100), "multiples of 8"),
        ("cookienet", (12, 128), "multiples of 8"),
        ("cookienet128", (16, 128), "use cookienet"),
        ("unrolled", (18, 128), "multiple of 4"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(name: str, shape: tuple[int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        catalog.get(name).module(shape)


def test_an_unknown_hyper_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="no hyper-parameter widht; it has features, angle_features, depth"):
        catalog.get("mixer").module((16, 128), {"widht": 3})


def test_looking_up_a_model_does_not_import_torch() -> None:
    code = "import sys; from filmloop_models import catalog; catalog.get('mixer'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
