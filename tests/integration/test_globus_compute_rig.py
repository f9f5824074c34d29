"""The rig of Globus Compute: the unmodified SDK and endpoint, a real RabbitMQ, and the hosted services emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from globus_compute_sdk import Executor
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer

from rigs.globus import Compute


@pytest.fixture
def executor(compute: Compute) -> Iterator[Executor]:
    """An executor that does not throttle, and sends functions by value."""
    with Executor(
        endpoint_id=compute.endpoint.id,
        api_burst_limit=8,
        api_burst_window_s=1,
        serializer=ComputeSerializer(strategy_code=AllCodeStrategies()),
    ) as made:
        yield made


def test_a_function_runs_over_there(executor: Executor) -> None:
    def echo(word: str) -> str:
        return word

    assert executor.submit(echo, "there and back").result(timeout=60) == "there and back"
