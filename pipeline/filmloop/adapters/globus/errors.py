"""From what the SDKs raise to filmloop's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def globus_errors(what: str, *, hint: str = "") -> Iterator[None]:
    """Turn the SDKs' exceptions in the block into filmloop's."""
    raise NotImplementedError
    yield
