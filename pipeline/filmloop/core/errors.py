"""One tree of errors, each with an exit code, a verdict on retrying and a hint that names a command.

FilmloopError            70  something nobody foresaw
├── ConfigError           2  the site file or the command line is wrong
├── TransientError        3  try again: a server is away, a disk is full, a deadline passed
│   └── TerminatedError  75  told to stop; its state is saved, the same call goes on from there
├── AuthError             4  a person must log in
├── CancelledError        7  a person stopped it where it was at work
├── DataError             5  bytes on disk are not what they should be
│   └── VerificationError 5  a digest, shape or golden pair does not match: nothing was loaded
└── TrainingError         6  the trainer failed or produced something unusable
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class FilmloopError(Exception):
    """Base of all errors that filmloop raises on purpose.

    Args:
        message: What happened, in one sentence, with the names and values that matter.
        hint: What to do now; names a command where there is one.
        ids: Identifiers that help to find the traces (cycle_id, shard_id, version, path).
    """

    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", ids: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.ids = dict(ids or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling: keyword-only arguments are lost by the default protocol."""
        return _rebuild, (type(self), self.message, self.hint, self.ids)

    def as_dict(self) -> dict[str, Any]:
        """The form that `--json` prints."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "ids": self.ids,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
        }


def _rebuild(cls: type[FilmloopError], message: str, hint: str, ids: dict[str, str]) -> FilmloopError:
    return cls(message, hint=hint, ids=ids)


class ConfigError(FilmloopError):
    """The site file, the command line or the installation is wrong; the same call fails again."""

    exit_code = 2


class TransientError(FilmloopError):
    """Something is away or full for now; the same call may work later."""

    exit_code = 3
    retryable = True


class TerminatedError(TransientError):
    """Something asked for an end by SIGTERM; the work so far is saved. 75 is EX_TEMPFAIL of sysexits.h: requeue."""

    exit_code = 75


class AuthError(FilmloopError):
    """A login, consent or permission is missing."""

    exit_code = 4


class CancelledError(FilmloopError):
    """A person stopped it where it was at work, for a reason of theirs: nothing repeats it by itself."""

    exit_code = 7


class DataError(FilmloopError):
    """Data on disk or from a source are damaged, missing or of an unknown form."""

    exit_code = 5


class VerificationError(DataError):
    """A digest, shape or golden pair does not match; nothing was loaded."""


class TrainingError(FilmloopError):
    """Training ended without a usable bundle."""

    exit_code = 6
