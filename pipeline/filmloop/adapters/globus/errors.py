"""From what the SDKs raise to filmloop's errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import globus_sdk
from globus_sdk.gare import GlobusAuthorizationParameters, to_gare
from globus_sdk.token_storage import TokenValidationError
from globus_sdk.token_storage.validating_token_storage import IdentityMismatchError, UnmetScopeRequirementsError

from filmloop.adapters.globus.identity.who import Role, access_hint, login_command, remembered
from filmloop.core.errors import AuthError, ConfigError, DataError, FilmloopError, TransientError

T = TypeVar("T")
_TRANSIENT_STATUS = frozenset({408, 409, 423, 425, 429})
_MESSAGE_CHARS = 400
_AWAY = "The same call may work later; `filmloop site check` tests the way there."


@contextmanager
def globus_errors(what: str, *, hint: str = "", role: Role = "data") -> Iterator[None]:
    """Turn the SDKs' exceptions in the block into filmloop's.

    The frames of the SDKs, in which tokens lie, lose their variables: no traceback can show them.

    Args:
        what: What was tried, as the beginning of a sentence: "Submitting the task".
        hint: What to do; '' is what the error itself suggests.
        role: Who tried it.

    Raises:
        AuthError: a login, consent, session or permission is missing.
        TransientError: the service or the network is away, busy, or too slow.
        ConfigError: the service refuses what the site file asks for.
        DataError: what was asked for is not there.
    """
    try:
        yield
    except FilmloopError as exc:
        forget_locals(exc)
        raise
    except Exception as exc:
        error = translate(exc, what, hint=hint, role=role)
        forget_locals(exc)
        if error is None:
            raise
        raise error from exc


def answered(service: str, send: Callable[[], T]) -> T:
    """What a service answers. A token that ends while the SDK is at its last repeat is renewed by it, but the request is not sent again.

    Args:
        service: Who is asked, as a message names it.
        send: Asks, and reads the answer.

    Raises:
        TransientError: the answer is none of the service's, as that of a proxy that has no way to it.
    """
    with real_answers(service):
        try:
            return send()
        except globus_sdk.GlobusAPIError as exc:
            if exc.http_status != 401 or isinstance(exc, globus_sdk.AuthAPIError):
                raise
            return send()


@contextmanager
def real_answers(service: str) -> Iterator[None]:
    """Around what asks a service and reads its answer: what the SDK makes of a page that is none becomes an error of ours.

    Raises:
        TransientError: the answer is none of the service's, as that of a proxy that has no way to it.
    """
    try:
        yield
    except (globus_sdk.GlobusError, FilmloopError):
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as exc:
        raise TransientError(
            f"{service} answered what is no answer ({type(exc).__name__}: {str(exc)[:_MESSAGE_CHARS]}).", hint=_AWAY
        ) from exc


def forget_locals(exc: BaseException) -> None:
    """Clear the variables of all frames that an exception, and what caused it, came through."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if found.__traceback__ is not None:
            traceback.clear_frames(found.__traceback__)
        waiting += [found.__cause__, found.__context__]


def translate(exc: Exception, what: str, *, hint: str = "", role: Role = "data") -> FilmloopError | None:
    """The error of our own tree that says what `exc` means; None: it is not one of the SDKs' to explain."""
    if isinstance(exc, globus_sdk.GlobusAPIError):
        return _api_error(exc, what, hint, role)
    if isinstance(exc, TokenValidationError):
        return _token_error(exc, what, hint, role)
    if isinstance(exc, globus_sdk.GlobusTimeoutError):
        return TransientError(f"{what}: Globus did not answer in time.", hint=hint or _AWAY)
    if isinstance(exc, globus_sdk.NetworkError):
        cause = type(exc.underlying_exception).__name__
        return TransientError(f"{what}: Globus cannot be reached ({cause}).", hint=hint or _AWAY)
    return _other_error(exc, what, hint)


def _token_error(exc: TokenValidationError, what: str, hint: str, role: Role) -> FilmloopError:
    """What the SDK finds in the file of tokens."""
    if isinstance(exc, IdentityMismatchError):
        return AuthError(
            f"{what}: another person is logged in here ({exc.stored_id}).",
            hint="`filmloop logout` forgets that person first.",
        )
    if isinstance(exc, UnmetScopeRequirementsError):
        return AuthError(f"{what}: the login does not cover what is asked for.", hint=hint or access_hint(role))
    return AuthError(f"{what}: nobody is logged in ({exc}).", hint=hint or access_hint(role))


def _api_error(exc: globus_sdk.GlobusAPIError, what: str, hint: str, role: Role) -> FilmloopError:
    status, code = exc.http_status, _code_of(exc)
    said = " ".join((exc.message or exc.http_reason or "").split())[:_MESSAGE_CHARS]
    text = f"{what}: {said or 'refused'} ({status}{' ' + code if code else ''})."
    ids = {"http_status": str(status)} | ({"request_id": exc.request_id} if exc.request_id else {})
    needed = to_gare(exc)
    if needed is not None and status in (401, 403):
        return AuthError(text, hint=hint or access_hint(role, _options(needed.authorization_parameters)), ids=ids)
    if isinstance(exc, globus_sdk.AuthAPIError):
        return _auth_error(text, status, code, hint, role, ids)
    if status == 401:
        return AuthError(text, hint=hint or "`filmloop whoami` says whose tokens are no longer good.", ids=ids)
    if status == 403 or "PermissionDenied" in code:
        return AuthError(text, hint=hint or f"Give {remembered(role).principal} access to it.", ids=ids)
    if status in _TRANSIENT_STATUS or status >= 500:
        return TransientError(text, hint=hint or _AWAY, ids=ids)
    if status == 404 and not _names_endpoint(code):
        return DataError(text, hint=hint or "Check the path, and that nobody removed it.", ids=ids)
    return ConfigError(text, hint=hint or "`filmloop site check` says which key of the site file is wrong.", ids=ids)


def _auth_error(text: str, status: int, code: str, hint: str, role: Role, ids: dict[str, str]) -> FilmloopError:
    """What Globus Auth says about secrets, refresh tokens and scopes."""
    who = remembered(role)
    if status in _TRANSIENT_STATUS or status >= 500:
        return TransientError(text, hint=hint or _AWAY, ids=ids)
    if "scope" in code.lower():
        return ConfigError(
            text, hint=hint or "A guest collection has no `data_access`: set mapped = false for it.", ids=ids
        )
    if who.login == "client":
        return AuthError(
            text,
            hint=hint or f"Is {who.secret_name} the secret of the client {who.client_id}? `filmloop whoami` tests it.",
            ids=ids,
        )
    return AuthError(text, hint=hint or f"Run `{login_command(role)}` on a terminal.", ids=ids)


def _code_of(exc: globus_sdk.GlobusAPIError) -> str:
    """The service's code; Auth's token route says it as OAuth2 does."""
    raw = exc.raw_json
    oauth = raw.get("error") if isinstance(raw, dict) else None
    return str(exc.code or (oauth if isinstance(oauth, str) else "") or "")


def _names_endpoint(code: str) -> bool:
    return any(word in code.lower().replace("_", "") for word in ("endpointnotfound", "functionnotfound"))


def _options(needed: GlobusAuthorizationParameters) -> tuple[str, ...]:
    """What a service asks for, as options of `filmloop login`."""
    options: list[str] = []
    for name, values in (
        ("--scope", needed.required_scopes),
        ("--policy", needed.session_required_policies),
        ("--domain", needed.session_required_single_domain),
        ("--identity", needed.session_required_identities),
    ):
        for value in values or ():
            options += [name, value]
    return (*options, "--mfa") if needed.session_required_mfa else tuple(options)


def _other_error(exc: Exception, what: str, hint: str) -> FilmloopError | None:
    """Errors of the Compute SDK and of its broker, which this module does not import."""
    module, name = type(exc).__module__.partition(".")[0], type(exc).__name__
    if module == "pika":
        return TransientError(f"{what}: the broker of Globus Compute cannot be reached ({name}).", hint=hint or _AWAY)
    if module == "globus_compute_sdk" and name == "VersionMismatch":
        return ConfigError(f"{what}: {exc}", hint=hint or "`filmloop site check` compares the versions of both sides.")
    if module == "globus_compute_sdk" and name == "TaskPending":
        return TransientError(f"{what}: the result is not there yet.", hint=hint)
    return None
