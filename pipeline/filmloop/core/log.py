"""Log lines carry the cycle, shard and version they belong to; handlers are set by the command line alone."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_context: ContextVar[dict[str, str] | None] = ContextVar("filmloop_log_context", default=None)


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Add identifiers (cycle_id, shard_id, version) to every line logged inside the block."""
    token = _context.set({**(_context.get() or {}), **ids})
    try:
        yield
    finally:
        _context.reset(token)


class _ContextFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        ids = _context.get() or {}
        record.ids = "".join(f" {key}={value}" for key, value in ids.items())
        return True


def configure(*, level: int = logging.INFO, file: Path | None = None) -> None:
    """Send filmloop's logs to stderr, or to `file`; stdout stays free for results."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s:%(ids)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_ContextFilter())
    root = logging.getLogger("filmloop")
    for former in root.handlers:
        former.close()
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


class Limited:
    """Logs a repeated error at most every `every_s` seconds, and its end once."""

    def __init__(self, logger: logging.Logger, every_s: float = 30.0) -> None:
        self._logger, self._every_s = logger, every_s
        self._last_s: float | None = None
        self._count = 0

    def failed(self, message: str, *args: object) -> None:
        """Report one more failure."""
        self._count += 1
        now_s = time.monotonic()
        if self._last_s is None or now_s - self._last_s >= self._every_s:
            self._logger.warning(message, *args)
            self._last_s = now_s

    def worked(self, message: str, *args: object) -> None:
        """Report that it works; silent unless it had failed before."""
        if self._count:
            self._logger.info(message + " (after %d failures)", *args, self._count)
        self._count, self._last_s = 0, None
