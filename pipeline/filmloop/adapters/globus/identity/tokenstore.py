"""The SDK's own JSON store of tokens, for several threads and processes: whole at every moment, readable by one user."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import globus_sdk
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from filmloop.core.errors import AuthError, TransientError
from filmloop.core.fsio import fsync_dir, fsync_file, translate_os_error

_logger = logging.getLogger(__name__)
_threads = threading.RLock()
_LOCK_S = 20.0
"""A write takes milliseconds."""


class DamagedTokensError(AuthError):
    """The file of tokens cannot be understood."""


class TokenStore(JSONTokenStorage):
    """Files as the SDK's own; it writes them beside and renames, under a lock that all processes of the user share.

    Raises:
        AuthError: the file is damaged, or others can read it, or this user cannot.
        TransientError: the disk refuses.
    """

    renewable = False
    """Its content can be had again without a person: a damaged file is dropped, and a full disk does no harm."""

    def __init__(self, filepath: Path | str, *, namespace: str = "DEFAULT") -> None:
        with _told(Path(filepath)):
            Path(filepath).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(filepath, namespace=namespace)

    def get_token_data_by_resource_server(self) -> dict[str, TokenStorageData]:
        """See `TokenStorage`."""
        self._refuse_open_mode()
        try:
            with _told(Path(self.filepath)):
                return super().get_token_data_by_resource_server()
        except DamagedTokensError:
            if not self.renewable:
                raise
            _logger.warning("%s is damaged; tokens are asked for anew", self.filepath)
            Path(self.filepath).unlink(missing_ok=True)
            return {}

    def store_token_data_by_resource_server(
        self, token_data_by_resource_server: Mapping[str, TokenStorageData]
    ) -> None:
        """See `TokenStorage`."""
        try:
            with self._changing() as copy:
                copy.store_token_data_by_resource_server(token_data_by_resource_server)
        except TransientError as exc:
            if not self.renewable:
                raise
            _logger.warning("tokens are not kept: %s", exc.message)

    def remove_token_data(self, resource_server: str) -> bool:
        """See `TokenStorage`."""
        with self._changing() as copy:
            return copy.remove_token_data(resource_server)

    def remove(self) -> None:
        """Drop the file, whatever it holds."""
        path = Path(self.filepath)
        with _told(path), _threads, _locked(path):
            _clear_parts(path)
            path.unlink(missing_ok=True)

    def _refuse_open_mode(self) -> None:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(self.filepath).st_mode)
            if mode & 0o077:
                raise AuthError(
                    f"{self.filepath} holds tokens and others can read it (mode {mode:04o}).",
                    hint=f"`chmod 600 {self.filepath}`; if somebody may have read it, `filmloop logout` revokes them.",
                    ids={"path": self.filepath},
                )

    @contextmanager
    def _changing(self) -> Iterator[JSONTokenStorage]:
        """A copy to change, which then takes the file's place."""
        path = Path(self.filepath)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with _told(path), _threads, _locked(path) as alone:
            self.get_token_data_by_resource_server()
            if alone:
                _clear_parts(path)
            try:
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(fd, "wb") as out:
                    out.write(path.read_bytes() if path.exists() else _empty())
                yield _Part(part, namespace=self.namespace)
                fsync_file(part)
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            fsync_dir(path.parent)


class _Part(JSONTokenStorage):
    """A file that is 0600 already. The SDK's umask holds for every thread of the process, so it is left alone."""

    @contextmanager
    def user_only_umask(self) -> Iterator[None]:
        yield


def _empty() -> bytes:
    form = {"data": {}, "format_version": JSONTokenStorage.format_version, "globus-sdk.version": globus_sdk.__version__}
    return json.dumps(form).encode()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    ids = {"path": str(path)}
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise AuthError(
                f"{path} holds the tokens, and this user may not use it: {exc.strerror}.",
                hint="Run `filmloop login` as the user that runs the loop.",
                ids=ids,
            ) from exc
        raise translate_os_error(exc, path) from exc
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedTokensError(
            f"{path} should hold tokens, but it is damaged.",
            hint="`filmloop logout` removes it, then `filmloop login`.",
            ids=ids,
        ) from None


def _clear_parts(path: Path) -> None:
    """What writers left behind that were killed: copies of the tokens."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Nobody else writes; False: the file system has no locks, and only the rename keeps the file whole."""
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _take(fd, path)
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> bool:
    end_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise TransientError(
                    f"Another process holds {path} for more than {_LOCK_S:.0f} s.",
                    hint=f"`fuser {path}.lock` names it.",
                    ids={"path": str(path)},
                ) from None
            time.sleep(0.01)
        except OSError:
            return False
