"""What a task that came back without an answer means, in the words that endpoints really use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filmloop.adapters.globus.compute.client import Budget, Compute, Told
from filmloop.adapters.globus.compute.endpoint import Known
from filmloop.adapters.globus.compute.launchjournal import LaunchJournal
from filmloop.adapters.globus.compute.outcome import answer_of
from filmloop.adapters.globus.compute.wire import TaskAnswer
from filmloop.config.globus import GlobusLauncher, GlobusSection
from filmloop.core.errors import ConfigError, FilmloopError, TransientError

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
        (
            Told(state="succeeded", result={"answer": {"job_id": "j1", "state": "x"}}),
            "lost",
            "",
            "state must be 'absent', ",
        ),
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
    ],
)
def test_a_program_without_an_answer(code: int | None, said: str, state: str) -> None:
    result: dict[str, Any] = {"none": f"no answer, exit code {code}", "exit_code": code, "said": said}
    answer = answer_of(Told(state="done", result=result), "j1")
    assert (answer.state, said in answer.detail) == (state, True)
    assert answer.error == ("ConfigError" if state == "failed" else "")


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (told(WORKER_LOST), TransientError),
        (Told(state="gone"), TransientError),
        (Told(state="done", result={"none": "no answer within 60 s", "exit_code": -9, "said": ""}), TransientError),
        (Told(state="done", result={"none": "no answer", "exit_code": 137, "said": "Killed"}), TransientError),
        (Told(state="done", result={"none": "no answer", "exit_code": 1, "said": "bad magic"}), ConfigError),
        (Told(state="done", result={"none": "cannot be started", "exit_code": 127, "said": ""}), ConfigError),
        (told("globus_compute_sdk.errors.DeserializationError: x"), ConfigError),
    ],
)
def test_a_comparison_of_the_two_sides_that_was_lost_is_made_again(
    tmp_path: Path, what: Told, kind: type[FilmloopError]
) -> None:
    section = GlobusLauncher(endpoint="0c9a0d5e-8d14-4a6f-9a36-0f5e2f0f1f11")
    known = Known(section, Compute(section, GlobusSection()), LaunchJournal(tmp_path))
    with pytest.raises(FilmloopError) as caught:
        known.compared(what)
    assert type(caught.value) is kind


def test_the_answer_of_another_job_is_none_of_ours() -> None:
    other = TaskAnswer(job_id="j2", state="succeeded")
    assert answer_of(Told(state="done", result={"answer": other.as_json()}), "j1").state == "lost"
    assert answer_of(Told(state="done", result={"answer": {"python": "3.11"}}), "j1").state == "lost"


def test_short_functions_leave_room_for_training_below_the_throttle_of_the_sdk() -> None:
    budget = Budget()
    assert [budget.take(leave=1) for _ in range(3)] == [True, True, False]
    assert [budget.take() for _ in range(3)] == [True, False, False]
