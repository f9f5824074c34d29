"""How MLflow's client is loaded: slim, quickly, and without a trace for others."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest


def said_by(program: str) -> list[str]:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def test_it_is_loaded_without_pandas_which_others_find_as_ever() -> None:
    program = """
        import sys
        from filmloop.adapters.mlflow.client import connect
        client = connect("http://127.0.0.1:1", timeout_s=1)
        print("pandas" in sys.modules)
        import pandas
        print(pandas.Series([1, 2]).sum(), type(client).__name__)
    """
    assert said_by(program) == ["False", "3", "MlflowClient"]


def test_what_is_for_language_models_is_loaded_when_it_is_asked_for() -> None:
    program = """
        import sys
        from filmloop.adapters.mlflow.client import connect
        connect("http://127.0.0.1:1", timeout_s=1)
        print("fastapi" in sys.modules, [name for name in sys.modules if name.startswith("mlflow.genai")])
        import mlflow
        print(callable(mlflow.genai.evaluate), mlflow.gateway.__file__.endswith("gateway/__init__.py"))
        from mlflow.genai.scorers import Scorer
        print(sys.modules["mlflow.genai"] is mlflow.genai, mlflow.genai.Scorer is Scorer)
    """
    assert said_by(program) == ["False", "[]", "True", "True", "True", "True"]


@pytest.mark.parametrize("first", ["pandas", "mlflow"])
def test_what_is_loaded_already_stays_loaded(first: str) -> None:
    program = f"""
        import sys
        import {first}
        found = sys.modules["{first}"]
        from filmloop.adapters.mlflow.loading import load
        load(1.0)
        print(sys.modules["{first}"] is found, "pandas" in sys.modules)
    """
    assert said_by(program) == ["True", "True"]
