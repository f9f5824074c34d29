"""`import mlflow` in half of its time, and well mannered: what a client of the registry does not need stays away."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

_FOR_LANGUAGE_MODELS = ("genai", "gateway")
"""Judges and gateways, and fastapi with them: a third of the time of `import mlflow`."""


def load(timeout_s: float) -> None:
    """Import MLflow: 1.1 s on an EPYC, where MLflow by itself takes 2.1.

    MLflow takes its manners from the environment and has no other switch: no retries of its own (the default is up to
    seven with growing pauses: minutes against an absent server; we retry where it makes sense), our time-out, no
    telemetry, no progress bars, no addresses on stdout. These hold for the whole process and the last call wins.
    """
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(max(1, math.ceil(timeout_s))),
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    )
    if "mlflow" not in sys.modules:
        with _later(*_FOR_LANGUAGE_MODELS), _hidden("pandas"):
            importlib.import_module("mlflow")


@contextmanager
def _later(*names: str) -> Iterator[None]:
    """Inside the block these packages of MLflow are empty; afterwards they load when something is asked of them.

    That is MLflow's own way with most of its packages, by its own means.
    """
    spec = find_spec("mlflow")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for name in names:
        empty = ModuleType(f"mlflow.{name}")
        empty.__path__ = [f"{folder}/{name}" for folder in folders]
        sys.modules[empty.__name__] = empty
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(f"mlflow.{name}", None)
    import mlflow
    from mlflow.utils.lazy_load import LazyLoader

    for name in names:
        setattr(mlflow, name, LazyLoader(name, vars(mlflow), f"mlflow.{name}"))


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Inside the block the package seems not to be installed: MLflow then loads as its slim edition does.

    It is there again afterwards. One that is loaded already is not hidden.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # as the documentation of sys.modules has it
    try:
        yield
    finally:
        sys.modules.pop(name, None)  # another thread that loads it too may have been first
