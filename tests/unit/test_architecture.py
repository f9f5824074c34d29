"""The direction of imports, and what a start costs: failing tests, not a diagram."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def _closure(extra: str) -> set[str]:
    """Every distribution that filmloop with this extra pulls in, as their own metadata say."""
    seen: set[tuple[str, str]] = set()
    wanted = [("filmloop", extra)]
    while wanted:
        name, asked = wanted.pop()
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another platform, or behind a marker that is not ours
            continue
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": asked}):
                found = canonicalize_name(requirement.name)
                wanted += [(found, inner) for inner in (requirement.extras or {""})]
    return {name for name, _ in seen}


def test_the_cluster_side_installs_without_globus_mlflow_or_a_web_stack() -> None:
    cluster = _closure("hpc")
    assert {"torch", "zarr", "safetensors", "onnx"} <= cluster
    web = {"flask", "fastapi", "starlette", "uvicorn", "gunicorn", "sqlalchemy", "waitress"}
    assert not cluster & ({"mlflow", "mlflow-skinny", "globus-sdk", "globus-compute-sdk"} | web)
    assert "mlflow-skinny" in _closure("edge"), "the walk would see it"
    assert "uvicorn" in _closure("registry"), "and a web stack too"
    assert "mlflow" not in _closure("edge"), "the edge needs the client, not the server"
