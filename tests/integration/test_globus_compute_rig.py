"""The rig of Globus Compute: the unmodified SDK and endpoint, a real RabbitMQ, and the hosted services emulated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from globus_compute_sdk import Executor
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer

from rigs.endpoint import ENGINES
from rigs.globus import Compute


@contextmanager
def executor(compute: Compute, engine: str = "threads") -> Iterator[Executor]:
    """One that does not throttle, and sends functions by value."""
    with Executor(
        endpoint_id=compute.endpoint.id,
        user_endpoint_config=ENGINES[engine],
        api_burst_limit=8,
        api_burst_window_s=1,
        serializer=ComputeSerializer(strategy_code=AllCodeStrategies()),
    ) as made:
        yield made


def where() -> dict[str, str]:
    import os

    return {"pid": str(os.getpid()), "node": os.environ.get("SLURMD_NODENAME", ""), "folder": os.getcwd()}


@pytest.mark.parametrize("engine", ["threads", "processes", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_function_runs_over_there(compute: Compute, engine: str) -> None:
    with executor(compute, engine) as there:
        found = there.submit(where).result(timeout=90)
    assert found["pid"] != str(os.getpid())
    assert found["folder"].startswith(str(compute.endpoint.folder))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["slurm", "slurm-mpi"])
def test_a_function_runs_in_a_job_of_slurm(slurm_compute: Compute, engine: str) -> None:
    with executor(slurm_compute, engine) as there:
        found = there.submit(where).result(timeout=120)
    assert found["node"] == "n1"
