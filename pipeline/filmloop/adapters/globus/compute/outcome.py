"""What a task of Globus Compute has come to, in the launcher's words.

| what came back | verdict |
|---|---|
| an answer of our program | what it says |
| no answer: the program was killed, or took too long | lost: submit again |
| no answer: there is no such interpreter, no filmloop in it, or one of other requests | failed: ConfigError |
| no answer, anything else: the program broke | lost |
| the worker, its manager or its job was lost | lost |
| the result was too large for the service | lost: the next attempt finds the run folder finished |
| the function could not be unpacked over there | failed: ConfigError |
| anything else was raised: not by our function, which raises nothing | lost |
| the service knows the task or its result no more | lost |
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from filmloop.adapters.globus.compute.client import Told
from filmloop.adapters.globus.compute.wire import TaskAnswer, shortened
from filmloop.core.errors import ConfigError
from filmloop.core.wording import first_of

_LOST = re.compile(
    r"\b(WorkerLost|ManagerLost|BadStateException|ScalingFailed|BrokenProcessPool|MaxResultSizeExceeded)\b"
)
_PACKING = re.compile(r"\b(DeserializationError|SerializationError|SerdeError|UnpicklingError|SyntaxError)\b")
_REFUSED = re.compile(r"\b(InvalidResourceSpecification|UnsupportedFeatureError)\b")
_CANNOT = re.compile(r"ModuleNotFoundError|No module named|does not understand the request")
_INSTALL_HINT = (
    "Install filmloop[hpc] there and name its python in [launcher] python; `filmloop site check` asks again."
)


def answer_of(told: Told, job_id: str) -> TaskAnswer:
    """What an ended task says about the job."""
    if told.state == "gone":
        return _lost(job_id, "Globus Compute has neither its task nor its result any more.")
    if told.result is None:
        return _failure(job_id, told.failure)
    if "answer" in told.result:
        try:
            answer = TaskAnswer.model_validate(told.result["answer"])
        except ValidationError as exc:
            return _lost(job_id, f"Its task answered in words of something else: {first_of(exc)}.")
        if answer.job_id == job_id:
            return answer
        return _lost(job_id, f"Its task answered for job {answer.job_id}.")
    return _no_answer(job_id, told.result)


def _no_answer(job_id: str, result: dict[str, Any]) -> TaskAnswer:
    code, said = result.get("exit_code"), str(result.get("said", ""))
    words = f"The endpoint's program gave {result.get('none')}. {said}".strip()
    if code in (126, 127) or (code == 1 and _CANNOT.search(said)):
        return _failed(job_id, words, ConfigError.__name__, _INSTALL_HINT)
    return _lost(job_id, words)


def _failure(job_id: str, traceback: str) -> TaskAnswer:
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Lost|Exceeded|Failed)\b", line)), ""
    )
    words = f"Globus Compute: {last or ' '.join(lines[-1:]) or 'no word about it'}"
    if not _LOST.search(traceback) and (_PACKING.search(traceback) or _REFUSED.search(traceback)):
        hint = "`filmloop site check` compares the versions on both sides."
        return _failed(job_id, words, ConfigError.__name__, hint, traceback)
    # Our function raises nothing: whatever this is came from what carries it, and may not come again.
    return _lost(job_id, words).model_copy(update={"log_tail": traceback[-8192:]})


def _lost(job_id: str, detail: str) -> TaskAnswer:
    return TaskAnswer(job_id=job_id, state="lost", detail=shortened(detail))


def _failed(job_id: str, detail: str, error: str = "", hint: str = "", log_tail: str = "") -> TaskAnswer:
    return TaskAnswer(
        job_id=job_id, state="failed", detail=shortened(detail), error=error, hint=hint, log_tail=log_tail[-8192:]
    )
