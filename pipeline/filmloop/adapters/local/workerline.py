"""How a caller and the warm worker talk: one JSON document each way over a Unix socket, with a descriptor beside the first."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filmloop.core.errors import ConfigError
from filmloop.core.fsio import disk_errors

SOCKET, LOCK, WORKER_LOG = "socket", "lock", "worker.log"
"""In the worker's folder: where it listens, what it holds while it lives, what it says."""

NOTHING: dict[str, Any] = {"claimed": "the attempt has its supervisor already"}
_LENGTH = struct.Struct("<I")
_MAX_BYTES = 1 << 24
_MIND = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What a process would load: a worker serves callers that would load the same."""

    python: str
    prefix: str
    pipeline: str
    models: str
    environ: dict[str, str]

    @classmethod
    def here(cls) -> Installation:
        """That of this process."""
        found = (importlib.util.find_spec(name) for name in ("filmloop", "filmloop_models"))
        pipeline, models = (spec.origin or "" if spec else "" for spec in found)
        environ = {name: os.environ[name] for name in _MIND if name in os.environ}
        return cls(python=sys.executable, prefix=sys.prefix, pipeline=pipeline, models=models, environ=environ)

    def as_json(self) -> dict[str, Any]:
        """As it goes over the line."""
        return asdict(self)


def private_folder(folder: Path) -> None:
    """Make the worker's folder, for its user alone.

    Raises:
        ConfigError: it belongs to somebody else, or others may enter it.
        TransientError: the disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is open to others: whoever can write there could run programs as you.",
            hint=f"chmod 700 {folder}, if it is yours.",
            ids={"path": str(folder)},
        )


@contextmanager
def at(folder: Path) -> Iterator[str]:
    """A short path of `folder`: the name of a socket has room for 107 bytes."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def send(line: socket.socket, document: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one document, and descriptors with its first byte."""
    data = json.dumps(document).encode()
    packed = _LENGTH.pack(len(data)) + data
    sent = socket.send_fds(line, [packed], list(fds)) if fds else 0
    line.sendall(packed[sent:])


def receive(line: socket.socket, *, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Receive one document, and the descriptors that came with it; they close on exec.

    Raises:
        EOFError: the other end closed the line.
        ValueError: no such document.
        OSError: the line broke, or nothing came in the socket's time.
    """
    data, fds, _, _ = socket.recv_fds(line, _LENGTH.size, max_fds)
    try:
        for fd in fds:
            os.set_inheritable(fd, False)
        data += _read(line, _LENGTH.size - len(data))
        (length,) = _LENGTH.unpack(data)
        if length > _MAX_BYTES:
            raise ValueError(f"a document of {length} bytes")
        value = json.loads(_read(line, length))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return value, fds


def _read(line: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = line.recv(min(count, 1 << 16))
        if not part:
            raise EOFError("the line was closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
