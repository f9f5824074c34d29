"""What is wrong with a task, in words, as one of filmloop's errors: whose fault it is decides whether to try again."""

from __future__ import annotations

from filmloop.adapters.globus.identity.who import Role, access_hint, remembered
from filmloop.adapters.globus.transfer.client import Fault, TaskView
from filmloop.core.errors import AuthError, CancelledError, DataError, FilmloopError, TransientError

EXTERNAL_CHECKSUM = "EXTERNAL_CHECKSUM_MISMATCH"
"""A file is not what its item says."""
CHECKSUM_CODES = frozenset({"VERIFY_CHECKSUM", EXTERNAL_CHECKSUM, "FILE_SIZE_CHANGED"})
"""The bytes differ: the source has changed, or the way is bad."""
ABSENT_CODES = frozenset({"FILE_NOT_FOUND"})
"""The source may be gone; a file system that lags behind says so too."""
_PATH_CODES = frozenset(
    {"AMBIGUOUS_PATH", "INVALID_PATH_NAME", "INVALID_SYMLINK", "IS_A_DIRECTORY", "IS_A_FILE", "NOT_A_DIRECTORY", "NOT_A_FILE"}
)  # fmt: skip
_LOGIN_CODES = frozenset({"AUTH", "NO_CREDENTIALS", "INVALID_SERVICE_CREDENTIAL", "GSI_DN_MISMATCH"})
_PERMISSION_CODES = frozenset({"PERMISSION_DENIED", "ACL_CHANGED"})
_HINTS = {
    EXTERNAL_CHECKSUM: "If it stays so, a file was changed after it was hashed: the next cycle makes it anew.",
    "QUOTA_EXCEEDED": "The quota at the receiving side is used up: remove files there or ask for more.",
    "NO_SPACE_LEFT": "The receiving disk is full: free space there.",
    "GC_NOT_CONNECTED": "Globus Connect Personal is not running on one side: start it.",
    "GC_PAUSED": "Globus Connect Personal is paused on one side: resume it.",
    "CONNECT_FAILED": "A side cannot be reached: status pages of the facilities, then `filmloop site check`.",
    "ENDPOINT_TOO_BUSY": "A side is busy with other transfers; the next call goes on.",
}


def words(fault: Fault) -> str:
    """One line: code, file, text."""
    where = f" at {fault.path}" if fault.path else ""
    return f"{fault.code}{where}: {' '.join(fault.text.split())[:300]}".rstrip(": ")


def stalled(
    task_id: str, view: TaskView, fault: Fault | None, pause_message: str, seconds: float, role: Role
) -> FilmloopError:
    """The error for a task that is given up because nothing happens any more."""
    if view.paused:
        return TransientError(
            f"Globus task {task_id} is paused{f': {pause_message}' if pause_message else '.'}",
            hint="Somebody at one of the facilities holds transfers back; the next call goes on.",
        )
    if view.status == "INACTIVE":
        return AuthError(
            f"Globus task {task_id} is inactive: its login has ended. {view.nice}".rstrip(), hint=access_hint(role)
        )
    what = f"Globus task {task_id} has made no progress for {seconds:.0f} s"
    if fault is None:
        return TransientError(f"{what}; Transfer says {view.nice or 'nothing'}.", hint="mover.stall_s allows it more.")
    return error_of(fault.code, f"{what}; {words(fault)}.", role)


def ended_badly(task_id: str, view: TaskView, fault: Fault | None, role: Role) -> FilmloopError:
    """The error for a task that Transfer has ended without success."""
    if view.code == "CANCELED":
        # Not to be repeated by itself: whoever did it had a reason. A person's call, or a later cycle, starts anew.
        return CancelledError(
            f"Globus task {task_id} was cancelled at Globus, not by filmloop. {view.reason}".rstrip(),
            hint="https://app.globus.org/activity tells by whom. The next cycle sends the files again.",
        )
    code = view.code or (fault.code if fault else "")
    told = f" Last error: {words(fault)}." if fault and fault.text != view.reason else ""
    return error_of(code, f"Globus task {task_id} failed: {code} {view.reason}".rstrip(" .") + f".{told}", role)


def error_of(code: str, message: str, role: Role) -> FilmloopError:
    """The error for an event's code: whose task is it to do something about it?

    Args:
        code: As Transfer writes it.
        message: What happened.
        role: Who asked Transfer.
    """
    if code in _PERMISSION_CODES:
        who = remembered(role).principal
        hint = f"Give {who} read and write access to the collection's folder; `filmloop site check` tests both sides."
        return AuthError(message, hint=hint)
    if code in _LOGIN_CODES:
        return AuthError(message, hint=access_hint(role))
    if code in _PATH_CODES:
        return DataError(message, hint="`filmloop shards verify` checks the files on this side.")
    return TransientError(message, hint=_HINTS.get(code, "The next call goes on with what is missing."))
