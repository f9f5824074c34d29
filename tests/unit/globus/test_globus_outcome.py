"""What a task that came back without an answer means, in the words that endpoints really use."""

from __future__ import annotations

from typing import Any

import pytest

from filmloop.adapters.globus.compute.client import Budget, Told
from filmloop.adapters.globus.compute.outcome import answer_of
from filmloop.adapters.globus.compute.wire import TaskAnswer

WORKER_LOST = """\
Traceback (most recent call last):
  File "parsl/executors/high_throughput/executor.py", line 500, in _result_queue_worker
    raise s
parsl.executors.high_throughput.errors.WorkerLost: Task failure due to loss of worker 0 on host n1
"""
MANAGER_LOST = """\
parsl.executors.high_throughput.errors.ManagerLost: Task failure due to loss of manager b'2f3c' on host n1
"""
RAISED = """\
Traceback (most recent call last):
  File "<string>", line 60, in run
KeyError: 'python'
"""


def told(failure: str) -> Told:
    return Told(state="failed", status="failed", failure=failure)


@pytest.mark.parametrize(
    ("what", "state", "error", "says"),
    [
        (told(WORKER_LOST), "lost", "", "loss of worker 0"),
        (told(MANAGER_LOST), "lost", "", "loss of manager"),
        (told("MaxResultSizeExceeded(12000030, 10485760)"), "lost", "", "12000030"),
        (told("parsl.executors.errors.BadStateException: Executor is broken"), "lost", "", "broken"),
        (told("globus_compute_sdk.errors.DeserializationError: x"), "failed", "ConfigError", "Deserialization"),
        (told("InvalidResourceSpecification({'num_nodes'})"), "failed", "ConfigError", "num_nodes"),
        (told(RAISED), "lost", "", "KeyError: 'python'"),
        (told(""), "lost", "", "no word"),
        (Told(state="gone"), "lost", "", "neither its task"),
    ],
)
def test_a_task_without_a_result(what: Told, state: str, error: str, says: str) -> None:
    answer = answer_of(what, "j1")
    assert (answer.state, answer.error) == (state, error)
    assert says in answer.detail


@pytest.mark.parametrize(
    ("code", "said", "state"),
    [
        (-9, "", "lost"),
        (None, "", "lost"),
        (137, "Killed", "lost"),
        (1, "OSError: Disk quota exceeded", "lost"),
        (1, "No module named filmloop", "failed"),
        (1, "ModuleNotFoundError: No module named 'pydantic'", "failed"),
        (1, "filmloop 0.9 at the endpoint does not understand the request: x", "failed"),
        (126, "", "failed"),
        (127, "", "failed"),
    ],  # fmt: skip
)
def test_a_program_without_an_answer(code: int | None, said: str, state: str) -> None:
    result: dict[str, Any] = {"none": f"no answer, exit code {code}", "exit_code": code, "said": said}
    answer = answer_of(Told(state="done", result=result), "j1")
    assert (answer.state, said in answer.detail) == (state, True)
    assert answer.error == ("ConfigError" if state == "failed" else "")


def test_the_answer_of_another_job_is_none_of_ours() -> None:
    other = TaskAnswer(job_id="j2", state="succeeded")
    assert answer_of(Told(state="done", result={"answer": other.as_json()}), "j1").state == "lost"
    assert answer_of(Told(state="done", result={"answer": {"python": "3.11"}}), "j1").state == "lost"


def test_short_functions_leave_room_for_training_below_the_throttle_of_the_sdk() -> None:
    budget = Budget()
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
