"""What the launcher asks its program at the endpoint, and what that answers: small JSON, everything big by path."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from filmloop.core.documents import Document, FileDigest, TrainJob
from filmloop.ports.launcher import LaunchStatus

WORDS = 4096
"""Longest detail and hint, in characters."""
TAIL = 16384
"""Longest end of a log, in characters."""
NUMBERS = 100
"""Most numbers of a line of progress."""


class TaskRequest(Document):
    """One request. What the function itself reads is in it too."""

    schema_version: Literal[1] = 1
    do: Literal["train", "look", "cancel"]
    python: str = Field("", description="interpreter of the program; '' is the worker's own")
    patience_s: float = Field(gt=0, description="the function gives the program up after so long")
    job: TrainJob
    attempt: int = Field(ge=1)
    token: str = Field(description="of the attempt")
    start_by_s: float = Field(0.0, description="training that has not begun by then is wanted no more; epoch seconds")
    why: str = Field("", description="of a cancel")
    command: tuple[str, ...] = Field((), description="runs in place of torchrun; () is torchrun")
    nodes: int = 1
    processes_per_node: int = 1
    threads: int = 1
    save_before_s: float = 60.0
    walltime_s: float | None = Field(None, description="what the queue grants its batch job, if the site says so")
    grace_s: float = 20.0
    filmloop: str = Field("", description="version on the side that asks")


class TaskAnswer(Document):
    """How a job stands, as its run folder says.

    Attributes:
        state: `absent`: there is nothing of it; `waiting`: this attempt has not begun.
        token: Of the attempt that this is about.
    """

    schema_version: Literal[1] = 1
    job_id: str
    state: Literal["absent", "waiting", "running", "succeeded", "failed", "lost"]
    token: str = ""
    exit_code: int | None = None
    detail: str = ""
    error: str = ""
    hint: str = ""
    log_tail: str = ""
    progress: dict[str, float] | None = None
    bundle_files: tuple[FileDigest, ...] = ()
    host: str = ""
    started_utc: str = ""

    @classmethod
    def of(cls, status: LaunchStatus, *, job_id: str, token: str = "", host: str = "") -> TaskAnswer:
        """The status as it travels: what may be of any length is cut."""
        state: Literal["waiting", "running", "succeeded", "failed", "lost"]
        state = "waiting" if status.state == "pending" else status.state
        return cls(
            job_id=job_id,
            state=state,
            token=token,
            exit_code=status.exit_code,
            detail=shortened(status.detail),
            error=status.error[:100],
            hint=shortened(status.hint),
            log_tail=status.log_tail[-TAIL:],
            progress=_finite(status.progress),
            bundle_files=status.bundle_files,
            host=host,
        )

    def as_status(self) -> LaunchStatus:
        """The form that the port promises."""
        return LaunchStatus(
            state="pending" if self.state == "absent" or self.state == "waiting" else self.state,
            exit_code=self.exit_code,
            detail=self.detail,
            error=self.error,
            hint=self.hint,
            log_tail=self.log_tail,
            progress=self.progress,
            bundle_files=self.bundle_files,
        )


def shortened(text: str) -> str:
    """At most `WORDS` characters of a text, its beginning."""
    return text if len(text) <= WORDS else f"{text[: WORDS - 4]} ..."


def _finite(progress: dict[str, float] | None) -> dict[str, float] | None:
    """JSON has no NaN: a loss that is none stays at home, the log tells it."""
    if progress is None:
        return None
    return {key: value for key, value in list(progress.items())[:NUMBERS] if abs(value) < float("inf")}
