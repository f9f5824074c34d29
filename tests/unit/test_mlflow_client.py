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


@pytest.mark.parametrize("first", ["pandas", "mlflow"])
def test_what_is_loaded_already_stays_loaded(first: str) -> None:
    program = f"""
        import sys
        import {first}
        found = sys.modules["{first}"]
        from filmloop.adapters.mlflow.client import load
        load(1.0)
        print(sys.modules["{first}"] is found, "pandas" in sys.modules)
    """
    assert said_by(program) == ["True", "True"]
