"""One item of `filmloop site check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do if it is not well."""

    item: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""
