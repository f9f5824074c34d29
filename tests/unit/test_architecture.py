"""The direction of imports, and what a start costs: failing tests, not a diagram."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "mlflow", "zarr", "globus_sdk", "globus_compute_sdk", "h5py", "onnx", "matplotlib", "sqlalchemy"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after importing these modules."""
    code = f"import {', '.join(modules)}, sys, json; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_imports_point_inwards() -> None:
    lint_imports = Path(sysconfig.get_path("scripts"), "lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    "modules",
    [
        ("filmloop.core.documents", "filmloop.core.fsio", "filmloop.core.poisson", "filmloop.core.log"),
        ("filmloop.config.loader",),
        ("filmloop.ports.mover", "filmloop.ports.launcher", "filmloop.ports.registry", "filmloop.ports.source"),
        ("filmloop.bundle",),
        ("filmloop.adapters.local.mover", "filmloop.adapters.local.launcher"),
    ],
    ids=lambda modules: modules[0],
)
def test_the_heart_loads_no_torch_and_no_vendor(modules: tuple[str, ...]) -> None:
    assert loaded_by(*modules) & HEAVY == set()


def test_the_model_package_stands_alone() -> None:
    assert "filmloop" not in loaded_by("filmloop_models.spec", "filmloop_models.cookiebox.conditions")
