"""Globus Compute for tests: one broker, one set of services and one endpoint a session, whole again after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from globus_compute_sdk.sdk import executor

from filmloop.testing.globus.hosted import Hosted, hosted
from filmloop.testing.slurm import ON_ONE_MACHINE, SlurmRig
from rigs.broker import Broker, broker, missing
from rigs.endpoint import Endpoint, endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What a test gets."""

    broker: Broker
    hosted: Hosted
    endpoint: Endpoint


@pytest.fixture(scope="session")
def _broker() -> Iterator[Broker]:
    if lacks := missing():
        pytest.skip(f"GLOBUS COMPUTE NOT TESTED: no {lacks} here; .ci/system installs rabbitmq-server (Debian, root)")
    with broker() as found:
        yield found


@pytest.fixture(scope="session")
def _hosted(_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with hosted(tmp_path_factory.mktemp("hosted"), amqp=_broker.url) as services:
        yield services


@pytest.fixture(scope="session")
def _endpoint(_hosted: Hosted) -> Iterator[Endpoint]:
    with endpoint(_hosted) as found:
        yield found


@pytest.fixture(scope="session")
def _slurm_endpoint(_hosted: Hosted, _slurm_rig: SlurmRig) -> Iterator[Endpoint]:
    with endpoint(_hosted, environ=_slurm_rig.environ | ON_ONE_MACHINE) as found:
        yield found


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what the endpoint's processes were and wrote, which is gone when the session ends."""
    report = yield
    if report.when == "call" and report.failed:
        item.stash[_FAILED] = True
        for rig in getattr(item, "funcargs", {}).values():
            if isinstance(rig, Compute):
                with suppress(OSError):  # a log that goes away meanwhile is no reason to end the session
                    report.sections.append(("endpoint", rig.endpoint.story()))
    return report


@pytest.fixture
def compute(
    _broker: Broker,
    _hosted: Hosted,
    _endpoint: Endpoint,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Compute]:
    """Services, a real broker and a real endpoint that is online; the SDK of this process speaks to them as its owner."""
    yield from _whole(Compute(broker=_broker, hosted=_hosted, endpoint=_endpoint), monkeypatch)
    if _FAILED in request.node.stash:  # one failure stays one, whatever state it left the endpoint in
        _endpoint.restore(afresh=True)


@pytest.fixture
def slurm_compute(
    _broker: Broker, _hosted: Hosted, _slurm_endpoint: Endpoint, slurm: SlurmRig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Compute]:
    """The same with an endpoint whose queue is a real Slurm of two nodes."""
    yield from _whole(Compute(broker=_broker, hosted=_hosted, endpoint=_slurm_endpoint), monkeypatch)
    # Slurm is cleared now, and a worker pool whose job is taken away would lose the next test's tasks.
    _slurm_endpoint.restore(afresh=True)


def _whole(rig: Compute, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compute]:
    for name, value in rig.endpoint.environ.items():
        monkeypatch.setenv(name, value)
    # Another endpoint's test may have stopped the broker that they share: this one comes back within minutes by itself.
    rig.endpoint.restore()
    yield rig
    _end_watchers()
    rig.hosted.reset()
    rig.broker.restore()
    rig.endpoint.restore()


def _end_watchers() -> None:
    """End the SDK's threads that wait for results: they outlive their executors, wait for ever for those of lost tasks at
    the end of the process, and leave sockets of their event loop open.
    """
    for watcher in list(executor._RESULT_WATCHERS.values()):
        connection = watcher._connection
        watcher.shutdown(wait=True, cancel_futures=True)
        if connection is not None:
            connection.ioloop.close()
