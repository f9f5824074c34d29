"""The registry contract over the fake and over a real MLflow server."""

import uuid

import pytest

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


class TestMlflowRegistry(RegistryContract):
    @pytest.fixture
    def registry(self):
        return MlflowRegistry(shared_server(), model=f"m-{uuid.uuid4().hex[:8]}", experiment="contract", timeout_s=10)

    @pytest.fixture
    def away(self):
        return MlflowRegistry(f"http://127.0.0.1:{free_port()}", model="m", experiment="contract", timeout_s=2)
