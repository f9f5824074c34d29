"""What `--set` and `--source` bring: keys and values, and the option as an error names it."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from typing import Any

from filmloop.core.errors import ConfigError


def parse_sets(sets: Sequence[str]) -> dict[str, Any]:
    """`key.sub=value` pairs, with values as TOML writes them; a bare word is a string.

    Raises:
        ConfigError: there is no `=`, or no key before it.
    """
    values: dict[str, Any] = {}
    example = "For example --set training.hyper.train_s=20"
    for pair in sets:
        _, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r} has no '='.", hint=example)
        if not all(key_of(pair).split(".")):
            raise ConfigError(f"--set {pair!r} names no key.", hint=example)
        values[key_of(pair)] = toml_value(text)
    return values


def as_typed(name: str, given: str) -> str:
    """An option as it was typed; a long one is cut."""
    return f"{name} {shlex.quote(given if len(given) <= 120 else f'{given[:117]}...')}"


def key_of(pair: str) -> str:
    """The key of a `key=value`."""
    return pair.partition("=")[0].strip()


def toml_value(text: str) -> Any:
    """What an option gives: a value of TOML where it is one (true, 500, 0.5), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
