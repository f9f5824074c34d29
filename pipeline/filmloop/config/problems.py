"""What is wrong with the values of a site, key by key and in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from filmloop.config.forms import WORDS
from filmloop.config.schema import SiteConfig
from filmloop.core.wording import in_words, shown

Place = tuple[str | int, ...]
"""Keys from the top of the file; () is the file as a whole."""

_PLACEHOLDER = re.compile(
    r"<[A-Za-z][^<>]*[A-Za-z0-9]>"
    r"|(?:^|(?<=/))(?:TODO|TBD|FIXME|CHANGE[_-]?ME|REPLACE[_-]?ME|FILL[_-]?ME|YOUR[_-][A-Z0-9_-]+)(?=/|$)"
)
_OF_A_KIND = ("union_tag_invalid", "union_tag_not_found")
_LOOKED_UP = {("source", "path")}
"""Whoever opens it says whether it is there, and a folder may have any name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One key, or a section whose keys do not fit together, and what is wrong with it as a whole clause."""

    place: Place
    text: str


def validated(values: Mapping[str, Any]) -> tuple[SiteConfig | None, list[Problem]]:
    """The configuration, or None and all that is wrong."""
    problems = list(_placeholders(values, ()))
    try:
        config = SiteConfig.model_validate(values)
    except ValidationError as exc:
        known = {problem.place for problem in problems}
        problems += [problem for problem in _explained(exc) if problem.place not in known]
        return None, problems
    problems += _truths_as_numbers(values, config, ())
    return (None if problems else config), problems


def key_of(place: Place) -> str:
    """`source.drift[0].set.gain`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _placeholders(node: Any, place: Place) -> Iterator[Problem]:
    """Text that stands for what somebody has to fill in."""
    if isinstance(node, str) and place not in _LOOKED_UP and (found := _PLACEHOLDER.search(node)):
        yield Problem(place=place, text=f"{key_of(place)} still holds the placeholder {found[0]}: fill it in")
    for part, below in _below(node):
        yield from _placeholders(below, (*place, part))


def _truths_as_numbers(node: Any, read: Any, place: Place) -> Iterator[Problem]:
    """`processes = true`, which pydantic reads as 1."""
    if isinstance(node, bool) and not isinstance(read, bool):
        must = "a whole number" if isinstance(read, int) else "a number"
        yield Problem(place=place, text=f"{key_of(place)} must be {must}, not {shown(node)}")
    for part, below in _below(node):
        inside = getattr(read, str(part)) if isinstance(read, BaseModel) else read[part]
        yield from _truths_as_numbers(below, inside, (*place, part))


def _below(node: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)


def _explained(exc: ValidationError) -> list[Problem]:
    """One problem a place: a value that may be of several types gives pydantic an error for each. The innermost counts."""
    texts: dict[Place, list[str]] = {}
    for error in exc.errors():
        place, section = _walk(error["loc"])
        text = _clause(error, place, section)
        texts.setdefault((*place, "kind") if error["type"] in _OF_A_KIND else place, []).append(text)
    inner = {place for place in texts if not any(other[: len(place)] == place != other for other in texts)}
    return [Problem(place=place, text=_joined(found)) for place, found in texts.items() if place in inner]


def _clause(error: Any, place: Place, section: Mapping[str, Any]) -> str:
    key, kind = key_of(place), error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), section.get("properties", {}), n=1)
        return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if kind in _OF_A_KIND:
        kinds = sorted(section["properties"][place[-1]]["discriminator"]["mapping"])
        given = f", not {error['ctx']['tag']!r}" if "tag" in error["ctx"] else ""
        return f"{key}.kind has to be one of {', '.join(map(repr, kinds))}{given}"
    if kind == "string_pattern_mismatch" and (form := WORDS.get(error["ctx"]["pattern"])):
        return f"{key} must be {form}"
    if kind == "value_error":
        return f"{key}: {in_words(error)}" if key else in_words(error)
    return f"{key} {in_words(error)}".lstrip()


def _joined(texts: Sequence[str]) -> str:
    """`model.hyper.depth must be a number or text in quotes or true or false, not a list`."""
    if len(texts) == 1:
        return texts[0]
    key, _, _ = texts[0].partition(" must be ")
    allowed = {text.rpartition(", not ")[0].partition(" must be ")[2] for text in texts}
    if "a number" in allowed:
        allowed.discard("a whole number")
    return f"{key} must be {' or '.join(sorted(allowed))}, not {texts[0].rpartition(', not ')[2]}"


@cache
def _schema() -> dict[str, Any]:
    return SiteConfig.model_json_schema()


def _walk(loc: Sequence[str | int]) -> tuple[Place, dict[str, Any]]:
    """The keys in an error's location, and the schema of the section that holds the last of them.

    pydantic puts the member of a union that it tried (simulator, replay; int, float) among the keys.
    """
    place: list[str | int] = []
    section = node = _schema()
    for part in loc:
        node = _resolved(node)
        if kind := node.get("discriminator", {}).get("mapping", {}).get(part):
            node = {"$ref": kind}
        elif isinstance(part, str) and "anyOf" in node:
            node = next((member for member in node["anyOf"] if member.get("type") == "array"), {})
        else:
            place.append(part)
            section, node = node, _child(node, part)
    return tuple(place), section


def _child(node: dict[str, Any], part: str | int) -> dict[str, Any]:
    if isinstance(part, int):
        found = node.get("items", {})
    else:
        found = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return found if isinstance(found, dict) else {}


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = _schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
