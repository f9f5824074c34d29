from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_module_that_breaks_while_it_is_imported_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("SPEC = nothing_of_the_kind\n")
    (tmp_path / "unfinished_models.py").write_text("SPEC = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="NameError: name 'nothing_of_the_kind' is not defined"):
        catalog.get("broken_models:SPEC")
    with pytest.raises(ValueError, match="SyntaxError"):
        catalog.get("unfinished_models:SPEC")


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


def test_every_hyper_parameter_of_the_catalog_has_a_rule_that_its_default_keeps() -> None:
    for spec in map(catalog.get, catalog.names()):
        assert set(spec.hyper_rules) == set(spec.hyper)
        assert [rule(spec.hyper[name]) for name, rule in spec.hyper_rules.items() if rule(spec.hyper[name])] == []


@pytest.mark.parametrize(
    ("name", "hyper", "why"),
    [
        ("mixer", {"features": "x"}, "cannot have features = 'x': it must be a whole number from 1"),
        ("mixer", {"features": True}, "features = True"),
        ("mixer", {"features": -1}, "whole number from 1"),
        ("mixer", {"angle_features": 0}, "whole number from 1"),
        ("mixer", {"depth": 2.5}, "depth = 2.5: it must be a whole number from 0"),
        ("mixer", {"features": 10**30}, "cannot be built with .*features"),
        ("unrolled", {"phases": 0}, "whole number from 1"),
        ("unrolled", {"centres": 3.0}, "whole number from 1"),
        ("unrolled", {"kick_bin": "far"}, "kick_bin = 'far': it must be a number from -10000 to 10000"),
        ("unrolled", {"centre_bin": float("nan")}, "must be a number"),
        ("unrolled", {"centre_step_bin": 10**400}, "must be a number"),
        ("unrolled", {"width_bin": 0.0}, "must be a number from 0.01"),
        ("unrolled", {"powers": 6}, "powers = 6: it must be whole numbers from 1, one a round"),
    ],
)
def test_a_hyper_parameter_that_does_not_fit_is_refused_in_words(name: str, hyper: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        catalog.get(name).module((16, 128), hyper)


def test_hyper_parameters_may_be_anything_that_their_rules_allow() -> None:
    assert catalog.get("mixer").module((16, 128), {"features": 1, "angle_features": 1, "depth": 0})
    hyper = {"centre_bin": 40, "kick_bin": -3.5, "width_bin": 2, "powers": "4, 1"}
    assert catalog.get("unrolled").module((16, 128), hyper)


def test_an_own_network_without_rules_takes_what_its_build_takes() -> None:
    spec = ModelSpec(name="own", summary="", build=lambda shape, *, scale: float(scale), hyper={"scale": 1})
    assert spec.module((4, 8), {"scale": 0.5}) == 0.5
    assert spec.module((4, 8), {"scale": "2"}) == 2.0


@pytest.mark.parametrize(
    ("error", "why"),
    [(ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"), (ValueError("scale is odd"), "}: scale is odd")],
)
def test_what_an_own_network_says_while_it_is_built_is_told(error: Exception, why: str) -> None:
    def build(shape: tuple[int, int], *, scale: float) -> None:
        raise error

    with pytest.raises(ValueError, match=r"model 'own' cannot be built with \{'scale': 1\}") as caught:
        ModelSpec(name="own", summary="", build=build, hyper={"scale": 1}).module((4, 8))
    assert str(caught.value).endswith(why)


def test_looking_up_a_model_does_not_import_torch() -> None:
    code = "import sys; from filmloop_models import catalog; catalog.get('mixer'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
