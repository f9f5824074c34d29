"""The registry contract over the fake, over one that is on its way, and over a real MLflow server."""

import threading
import uuid
from concurrent.futures import Future

import pytest

from filmloop.adapters.arriving import ArrivingRegistry
from filmloop.adapters.mlflow.registry import MlflowRegistry
from filmloop.testing.contracts.registry import RegistryContract
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.mlflow_server import free_port, shared_server


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def registry(self, tmp_path):
        return MemoryRegistry(tmp_path / "registry")

    @pytest.fixture
    def away(self, tmp_path):
        registry = MemoryRegistry(tmp_path / "registry")
        registry.away = True
        return registry


def soon(registry):
    """The registry, a moment from now."""
    arriving = Future()
    threading.Timer(0.02, arriving.set_result, [registry]).start()
    return arriving


class TestArrivingRegistry(RegistryContract):
    @pytest.fixture
    def registry(self, tmp_path):
        registry = MemoryRegistry(tmp_path / "registry")
        return ArrivingRegistry(registry.model, soon(registry), is_new=True)

    @pytest.fixture
    def away(self, tmp_path):
        registry = MemoryRegistry(tmp_path / "registry")
        registry.away = True
        return ArrivingRegistry("m", soon(registry), is_new=False)


class TestMlflowRegistry(RegistryContract):
    @pytest.fixture
    def registry(self):
        return MlflowRegistry(shared_server(), model=f"m-{uuid.uuid4().hex[:8]}", experiment="contract", timeout_s=10)

    @pytest.fixture
    def away(self):
        return MlflowRegistry(f"http://127.0.0.1:{free_port()}", model="m", experiment="contract", timeout_s=2)
