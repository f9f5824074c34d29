"""What is made of answers that are none of Globus Compute's: the unmodified SDK, with something else on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from filmloop.adapters.globus.compute.client import Compute
from filmloop.config.globus import GlobusLauncher as LauncherSection
from filmloop.core.errors import TransientError
from rigs.globus_auth import Globus
from rigs.globus_way import Way

ENDPOINT = "0c9a0d5e-8d14-4a6f-9a36-0f5e2f0f1f11"
FUNCTION = "5f0b3c52-6a55-4b64-9a0e-4f7f1f0f1f12"


@pytest.fixture
def compute(globus: Globus, way: Way) -> Compute:
    return Compute(LauncherSection(endpoint=ENDPOINT, request_timeout_s=5.0), globus.site("client").globus)


ASKED: dict[str, Callable[[Compute], object]] = {
    "a task": lambda compute: compute.ask("t1"),
    "the endpoint": lambda compute: compute.is_online(),
    "a task group": lambda compute: compute.tasks_of("g1"),
    "a submission": lambda compute: compute.submit(FUNCTION, {"do": "look"}, options={}),
    "a registration": lambda compute: compute.register(),
}


@pytest.mark.parametrize("body", [b"<html>back soon</html>", b"", b"[]", b'{"status": '])
@pytest.mark.parametrize("what", ASKED)
def test_an_answer_that_is_none_of_the_services_may_pass(compute: Compute, way: Way, what: str, body: bytes) -> None:
    way.body = body
    with pytest.raises(TransientError, match="Globus Compute answered what is no answer"):
        ASKED[what](compute)
    assert way.asked


def test_a_token_that_is_refused_at_the_last_repeat_is_renewed_and_used(compute: Compute, way: Way) -> None:
    way.body, way.then = b'{"status": "waiting-for-nodes"}', [503, 401]
    assert compute.ask("t1").state == "pending"
    assert len(way.asked) == 3
