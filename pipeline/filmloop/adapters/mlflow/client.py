"""MLflow's client, quiet and impatient, and its errors in our own words.

Nothing here imports MLflow before the first call.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filmloop.adapters.mlflow.loading import load
from filmloop.core.errors import AuthError, ConfigError, DataError, FilmloopError, TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVE_HINT = "`filmloop registry serve` starts our own server; `[registry] uri` in the site file names another one."

_NO_ACCESS = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_OUR_FAULT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "RESOURCE_ALREADY_EXISTS"}
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def connect(uri: str, timeout_s: float) -> MlflowClient:
    """A client of the server at `uri`; dials nobody yet."""
    load(timeout_s)
    host = urlsplit(uri).hostname
    if host in _LOOPBACK:
        _bypass_proxy(host)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _bypass_proxy(loopback: str) -> None:
    """Computing centres set http_proxy for everybody, and requests would ask the proxy for this machine's loopback.

    The one name that is used, and no other: the environment is the process's, and others may have reasons.
    """
    for name in ("no_proxy", "NO_PROXY"):
        listed = [host for host in os.environ.get(name, "").split(",") if host]
        if loopback not in listed:
            os.environ[name] = ",".join([*listed, loopback])


@contextmanager
def mlflow_errors(uri: str, what: str) -> Iterator[None]:
    """Translate what MLflow and requests raise inside the block; `what` completes "could not ...".

    Raises:
        TransientError: away, too slow, or failing inside.
        AuthError: it wants a login or a right.
        DataError: it has no such thing.
        ConfigError: it does not understand: wrong name, or not an MLflow server.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except MlflowException as exc:
        raise _translate(exc, uri, what) from exc
    except RequestException as exc:
        raise _translate_http(exc, uri, what) from exc


def is_absent(exc: BaseException, *also: str) -> bool:
    """Whether MLflow itself says that there is no such thing; `also` adds error codes that mean it too.

    A bare 404 page is not enough: any web server has those.
    """
    from mlflow.exceptions import RestException

    return isinstance(exc, RestException) and (exc.error_code in _ABSENT or exc.error_code in also)


def disk_error(exc: BaseException) -> OSError | None:
    """What this machine's disk refused while MLflow wrote there, if that is what its report of many files is about."""
    numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(exc))}
    return next((OSError(number, os.strerror(number)) for number in _OF_THE_DISK if number in numbers), None)


def _translate(exc: Any, uri: str, what: str) -> FilmloopError:
    code, said = str(exc.error_code), _short(exc)
    ids = {"uri": uri, "error_code": code}
    if code in _NO_ACCESS or _status(exc) in (401, 403):
        return _no_access(uri, what, said, ids)
    if is_absent(exc):
        return DataError(f"MLflow at {uri} could not {what}: {said}", hint="`filmloop models list`", ids=ids)
    if code in _OUR_FAULT:
        return ConfigError(
            f"The server at {uri} could not {what}: {said}",
            hint="Is it an MLflow server, and are the names in `[registry]` and `[model]` valid? " + SERVE_HINT,
            ids=ids,
        )
    return _away(exc, uri, what, said, ids)


def _translate_http(exc: Any, uri: str, what: str) -> FilmloopError:
    said, ids = _short(exc), {"uri": uri}
    status = exc.response.status_code if exc.response is not None else None
    if status in (401, 403):
        return _no_access(uri, what, said, ids)
    if status == 404:
        return DataError(f"MLflow at {uri} could not {what}: {said}", hint="`filmloop models list`", ids=ids)
    return _away(exc, uri, what, said, ids)


def _away(exc: BaseException, uri: str, what: str, said: str, ids: dict[str, str]) -> TransientError:
    """Nobody listens, or what listens fails; the innermost cause is the readable one."""
    root = exc
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if isinstance(root, OSError):
        said = _short(root)
    return TransientError(f"MLflow at {uri} could not {what}: {said}", hint=SERVE_HINT, ids=ids)


def _no_access(uri: str, what: str, said: str, ids: dict[str, str]) -> AuthError:
    return AuthError(
        f"MLflow at {uri} does not let us {what}: {said}",
        hint="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment.",
        ids=ids,
    )


def _status(exc: BaseException) -> int | None:
    """HTTP status of the request behind `exc`: transfers of artifacts wrap it."""
    cause = exc.__cause__ or exc.__context__
    response = getattr(cause, "response", None)
    return getattr(response, "status_code", None)


def _short(exc: object) -> str:
    """The first line, as MLflow quotes whole response bodies; with the last one where the first only announces it."""
    lines = str(exc).strip().splitlines()
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0][:300]} {lines[-1][:300]}"
    return lines[0][:300] if lines else type(exc).__name__
