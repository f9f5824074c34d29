"""Rules for hyper-parameters: each says what a value must be, or '' if it is that."""

from __future__ import annotations

import re
from collections.abc import Callable

HyperValue = int | float | str | bool
Rule = Callable[[HyperValue], str]


def whole(least: int) -> Rule:
    """A whole number from `least`; 2.0 is none, and neither is `true`."""

    def wrong(value: HyperValue) -> str:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return "" if fits else f"must be a whole number from {least}"

    return wrong


def number(least: float, most: float) -> Rule:
    """A number from `least` to `most`, whole or not."""

    def wrong(value: HyperValue) -> str:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        return "" if fits else f"must be a number from {least:g} to {most:g}"

    return wrong


def text(pattern: str, must: str) -> Rule:
    """Text that the regular expression `pattern` matches as a whole; `must` says in words what that is."""

    def wrong(value: HyperValue) -> str:
        return "" if isinstance(value, str) and re.fullmatch(pattern, value) else must

    return wrong
