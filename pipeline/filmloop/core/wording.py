"""What pydantic found wrong with a value, in words that say what to write: one table, for site files and documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

_WORDS = {
    "missing": "must be given",
    "extra_forbidden": "is no key that it may have",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text in quotes",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be text like {pattern}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} of them",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table of keys and values",
    "model_type": "must be a section with keys of its own",
    "model_attributes_type": "must be a section with keys of its own",
    "value_error": "{error}",
}
"""By pydantic's name of the error; in braces what it tells besides."""
_WITHOUT_VALUE = {"missing", "extra_forbidden", "string_pattern_mismatch", "string_too_short", "value_error"}
"""Where the value says no more, or may be long, or a secret that was put in the wrong place."""
_MOST_CHARACTERS = 40


def in_words(error: Mapping[str, Any]) -> str:
    """What must be so, and what is instead: "must be at least 1, not 0". The key is for the caller to put before it.

    Args:
        error: One of `ValidationError.errors()`.
    """
    kind = error["type"]
    told = {name: f"{v:g}" if isinstance(v, float) else v for name, v in error.get("ctx", {}).items()}
    text = _WORDS.get(kind, "does not fit").format_map(told)
    text = text.rstrip(".")
    return text if kind in _WITHOUT_VALUE else f"{text}, not {shown(error['input'])}"


def first_of(exc: ValidationError) -> str:
    """The first problem of a document, with its key: `seed must be a whole number, not 'one'`."""
    error = exc.errors()[0]
    key = ".".join(map(str, error["loc"])) or "the document"
    return f"{key}{':' if error['type'] == 'value_error' else ''} {in_words(error)}"


def shown(value: Any) -> str:
    """A value as a person wrote it, briefly."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**_MOST_CHARACTERS:  # some are too long for `str`
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
