"""What people and scripts see: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from filmloop.core import log
from filmloop.core.counted import counted

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_LONG = 120
"""Characters of a tag that are shown."""
_log = logging.getLogger(__name__)
_SPINNER = 2
"""Characters that a live line begins with."""


def set_up_logs(*, quiet: bool = False) -> None:
    """Logs to stderr: everything with FILMLOOP_LOG=debug or info, else warnings (`quiet`) or what a service says."""
    named, levels = os.environ.get("FILMLOOP_LOG", ""), logging.getLevelNamesMapping()
    log.configure(level=levels.get(named.upper(), logging.WARNING if quiet else logging.INFO))
    if named and named.upper() not in levels:
        _log.warning("FILMLOOP_LOG=%s is no level and changes nothing; debug, info, warning and error are.", named)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False) + "\n")
    sys.stdout.flush()


def print_line(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout, for files that grow by lines."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout. Without a terminal nothing is wrapped or cut: one line a row, aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not out.is_terminal:
        widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
        lines = [columns, *cells] if any(columns) else cells
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        sys.stdout.write((f"{title}\n" if title else "") + text + "\n")
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def brief(text: str) -> str:
    """A long JSON document as what its top level holds; any other text as it is."""
    if len(text) <= _LONG:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict | list):
        return text
    parts = [f"{key}: {_held(below)}" for key, below in value.items()] if isinstance(value, dict) else map(_held, value)
    head = ""
    for part in parts:
        if len(head) + len(part) > _LONG:
            head += "..., "
            break
        head += f"{part}, "
    return f"{head.removesuffix(', ')}  ({len(text):,} characters of JSON; all with --json)"


def _held(value: Any) -> str:
    if isinstance(value, dict):
        return counted(len(value), "key")
    if isinstance(value, list):
        return counted(len(value), "value")
    return json.dumps(value, ensure_ascii=False)


def fitting(text: str, width: int) -> str:
    """As many columns of `text`, which two spaces part, as go into `width` characters: rich would cut within a number."""
    while len(text) > width and "  " in text:
        text = text.rpartition("  ")[0].rstrip()
    return text


class Progress:
    """Tells what a long command is doing: a live line on a terminal, plain lines elsewhere. Use as a context manager."""

    _PLAIN_EVERY_S = 10.0

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._step, self._step_s, self._plain_s = "", 0.0, 0.0
        self._live: Status | None = None

    def __enter__(self) -> Progress:
        """Begin."""
        if err.is_terminal and not err.is_dumb_terminal:
            self._live = err.status("")
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Remove the live line."""
        if self._live:
            self._live.stop()

    def __call__(self, step: str, text: str) -> None:
        """Say what is done now; further words on the same step replace the live line."""
        now_s = time.monotonic()
        new = step != self._step
        self._step = step
        line = f"{now_s - self._begun_s:6.1f} s  {step:<9} {text}"
        if self._live:
            if new:
                err.print(line, style="dim", markup=False)
            self._live.update(escape(fitting(f"{step}: {text}", err.width - _SPINNER)))
        elif new or now_s - self._plain_s >= self._PLAIN_EVERY_S:
            err.print(line, markup=False)
            self._plain_s = now_s
