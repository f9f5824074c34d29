"""The rig of Globus Compute: the unmodified SDK and endpoint, a real RabbitMQ, and the hosted services emulated."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer
from globus_sdk import GlobusAPIError

from filmloop.core.retry import wait_until
from filmloop.testing import processes
from filmloop.testing.globus.hosted import hosted
from rigs import broker as brokers
from rigs import endpoint as endpoints
from rigs.endpoint import ENGINES
from rigs.globus import Compute

SUBMIT = "POST /v3/endpoints/<uuid:endpoint_id>/submit"
CLIENT = """
import sys, time
from globus_compute_sdk import Executor
from globus_compute_sdk.serialize import AllCodeStrategies, ComputeSerializer
from rigs.endpoint import ENGINES

def slow(seconds):
    import time
    time.sleep(seconds)
    return "done"

there = Executor(sys.argv[1], user_endpoint_config=ENGINES["threads"])
there.serializer = ComputeSerializer(strategy_code=AllCodeStrategies())
future = there.submit(slow, 2)
while future.task_id is None:
    time.sleep(0.05)
print(there.task_group_id, flush=True)
time.sleep(600)
"""
OWNER = """
import os, sys, time
from pathlib import Path
from filmloop.core.retry import wait_until
from filmloop.testing.globus.hosted import hosted
from rigs.broker import broker
from rigs.endpoint import ENGINES, endpoint
with broker() as rabbit, hosted(Path(sys.argv[1]), amqp=rabbit.url) as services, endpoint(services) as cluster:
    os.environ.update(cluster.environ)
    from globus_compute_sdk import Client
    client = Client()
    batch = client.create_batch(user_endpoint_config=ENGINES["processes"])
    batch.add(client.register_function(time.sleep), args=(600,))
    client.batch_run(cluster.id, batch)
    wait_until(lambda: cluster.workers() or None, deadline_s=30, what="a worker")
    print(rabbit.folder, cluster.folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def executor(compute: Compute, engine: str = "threads") -> Iterator[Executor]:
    """One that does not throttle, sends functions by value, and does not wait at its end for results that never come."""
    made = Executor(
        endpoint_id=compute.endpoint.id,
        user_endpoint_config=ENGINES[engine],
        api_burst_limit=8,
        api_burst_window_s=1,
        serializer=ComputeSerializer(strategy_code=AllCodeStrategies()),
    )
    try:
        yield made
    finally:
        made.shutdown(wait=False, cancel_futures=True)


def where() -> dict[str, str]:
    import os

    return {"pid": str(os.getpid()), "node": os.environ.get("SLURMD_NODENAME", ""), "folder": os.getcwd()}


@pytest.mark.parametrize("engine", ["threads", "processes", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_function_runs_over_there(compute: Compute, engine: str) -> None:
    with executor(compute, engine) as there:
        found = there.submit(where).result(timeout=90)
    assert found["pid"] != str(os.getpid())
    assert found["folder"].startswith(str(compute.endpoint.folder))


def ranks() -> list[str]:
    import subprocess

    asked = "$PARSL_MPI_PREFIX sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME'"
    return sorted(subprocess.run(asked, shell=True, capture_output=True, text=True, timeout=60).stdout.splitlines())


@pytest.mark.slow
def test_a_function_runs_in_a_job_of_slurm(slurm_compute: Compute) -> None:
    with executor(slurm_compute, "slurm") as there:
        assert there.submit(where).result(timeout=120)["node"] in ("n1", "n2")


@pytest.mark.slow
def test_a_function_reaches_every_node_of_its_job(slurm_compute: Compute) -> None:
    with executor(slurm_compute, "slurm-mpi") as there:
        there.resource_specification = {"num_nodes": 2, "ranks_per_node": 1}
        assert there.submit(ranks).result(timeout=120) == ["0 n1", "1 n2"]


def test_an_exception_comes_back_as_a_traceback(compute: Compute) -> None:
    def fail() -> None:
        raise ValueError("the beam is off")

    with executor(compute) as there, pytest.raises(TaskExecutionFailed, match="ValueError: the beam is off"):
        there.submit(fail).result(timeout=60)


def test_a_result_above_the_limit_is_refused(compute: Compute) -> None:
    def large() -> str:
        return "x" * 11_000_000

    with executor(compute) as there, pytest.raises(TaskExecutionFailed, match="MaxResultSizeExceeded"):
        there.submit(large).result(timeout=60)


def test_arguments_above_the_limit_are_refused(compute: Compute) -> None:
    with executor(compute) as there, pytest.raises(GlobusAPIError) as refused:
        there.submit(len, "x" * 11_000_000).result(timeout=60)
    assert refused.value.http_status == 413


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_task_and_the_next_one_runs(compute: Compute, tmp_path: Path) -> None:
    def wait(path: str) -> None:
        import os
        import time

        with open(path, "w") as out:
            out.write(str(os.getpid()) + "\n")
        time.sleep(600)

    told = tmp_path / "pid"
    with executor(compute, "pool") as there:
        doomed = there.submit(wait, str(told))
        wait_until(lambda: (told.exists() and told.read_text().endswith("\n")) or None, deadline_s=60, what="the task")
        os.kill(int(told.read_text()), signal.SIGKILL)
        with pytest.raises(TaskExecutionFailed, match="WorkerLost"):
            doomed.result(timeout=60)
        assert there.submit(where).result(timeout=60)


def test_a_new_client_finds_the_result_that_a_killed_one_waited_for(compute: Compute) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, compute.endpoint.id], env=environ(), stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        group = client.stdout.readline().strip()
        client.send_signal(signal.SIGKILL)
    with executor(compute) as there:
        (future,) = there.reload_tasks(group)
        assert future.result(timeout=60) == "done"
        (again,) = there.reload_tasks(group)
        assert again.result(timeout=60) == "done", "the service keeps it"


def test_a_submission_whose_answer_is_lost_is_sent_again_by_the_sdk(compute: Compute) -> None:
    compute.hosted.fault("lose_answer", match={"route": SUBMIT})
    before = len(compute.hosted.ask("GET", "compute")["tasks"])
    with executor(compute) as there:
        assert there.submit(where).result(timeout=60)
    assert compute.hosted.fired("lose_answer") == 1
    assert len(compute.hosted.ask("GET", "compute")["tasks"]) == before + 2, "it runs twice: functions must expect that"


def test_an_endpoint_that_was_stopped_is_offline_and_refuses_work(compute: Compute) -> None:
    client = Client()
    assert client.get_endpoint_status(compute.endpoint.id)["status"] == "online"
    compute.endpoint.stop()
    assert client.get_endpoint_status(compute.endpoint.id)["status"] == "offline"
    assert refusal(compute, ENGINES["threads"]).code == "ENDPOINT_NOT_ONLINE"


@pytest.mark.slow
def test_an_endpoint_that_was_killed_is_offline_after_three_heartbeats(compute: Compute) -> None:
    compute.endpoint.kill()
    begun_s = time.monotonic()
    wait_until(lambda: not compute.endpoint.online() or None, deadline_s=30, what="the end of its heartbeats")
    assert time.monotonic() - begun_s < 3 * endpoints.HEARTBEAT_S + 2
    compute.endpoint.start()
    with executor(compute) as there:
        assert there.submit(where).result(timeout=60)


def test_options_that_the_endpoint_refuses_are_refused_with_its_words(compute: Compute) -> None:
    assert "is not one of" in refusal(compute, {"engine": "abacus"}).text
    assert "'walltime' is a required property" in refusal(compute, {"engine": "slurm"}).text
    no_interface = refusal(compute, ENGINES["pool"] | {"interface": "ib9"})
    assert (no_interface.http_status, no_interface.code) == (422, "SEMANTICALLY_INVALID")


def refusal(compute: Compute, options: dict[str, object]) -> GlobusAPIError:
    client = Client()
    batch = client.create_batch(user_endpoint_config=options)
    batch.add(client.register_function(where))
    with pytest.raises(GlobusAPIError) as refused:
        client.batch_run(compute.endpoint.id, batch)
    assert refused.value.http_status == 422
    return refused.value


@pytest.mark.slow
def test_a_result_outlives_the_death_of_the_broker(compute: Compute) -> None:
    def nap() -> str:
        import time

        time.sleep(3)
        return "rested"

    client = Client(code_serialization_strategy=AllCodeStrategies())
    batch = client.create_batch(user_endpoint_config=ENGINES["threads"])
    function = client.register_function(nap)
    batch.add(function)
    task = client.batch_run(compute.endpoint.id, batch)["tasks"][function][0]
    compute.broker.stop()
    time.sleep(4)
    assert client.get_task(task)["pending"], "it ended meanwhile, and nobody could be told"
    compute.broker.start()
    done = wait_until(lambda: client.get_task(task).get("result"), deadline_s=60, what="the result")
    assert done == "rested"


def test_the_services_remember_what_they_held_before_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_ID", endpoints.CLIENT_ID)
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", endpoints.SECRET)
    known = ""
    for life in ("first", "second"):
        with hosted(tmp_path / "state") as services:
            for name, value in services.environ.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("HOME", str(tmp_path / life))
            known = known or Client().register_function(where)
            assert Client().get_function(known)["function_name"] == "where", life


@pytest.mark.slow
def test_nothing_is_left_of_a_rig_whose_owner_was_killed(compute: Compute, tmp_path: Path) -> None:
    services = tmp_path / "services"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(services)], env=environ(), stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        rabbit, cluster = (Path(word) for word in owner.stdout.readline().split())
        alive = related(rabbit, cluster, services)
        owner.send_signal(signal.SIGKILL)
    assert len(alive) >= 6, "broker, its name server, services, core endpoint, user endpoint, worker"
    processes.sweep(brokers.PREFIX, brokers.kill_all)
    processes.sweep(endpoints.PREFIX, endpoints.kill_all)
    wait_until(lambda: not related(rabbit, cluster, services) or None, deadline_s=10, what="the end of all of it")
    assert not rabbit.exists()
    assert not cluster.exists()
    assert compute.endpoint.online(), "ours goes on"


def environ() -> dict[str, str]:
    """For a process of its own that imports the rigs as this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def related(*folders: Path) -> list[str]:
    """Command lines of processes that work in these folders, or have them in their environment or their own words."""
    names = [re.escape(str(folder)) for folder in folders]
    found = [processes.words(pid) for folder in folders for pid in processes.below(folder)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                said = (entry / "environ").read_bytes().decode(errors="replace") + processes.words(int(entry.name))
            except OSError:
                continue
            if re.search("|".join(names), said):
                found.append(processes.words(int(entry.name)))
    return sorted(set(found))
