"""From a TOML file to a SiteConfig, with errors that name the key and what it may be.

A resolved configuration (`config.json` beside every cycle) is a site file too.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.fsio import disk_errors

DEFAULT_SITE = Path("site_configs/local.toml")


def find_site(given: Path | None) -> Path:
    """The site file: `--site`, else FILMLOOP_SITE, else `site_configs/local.toml` here.

    Raises:
        ConfigError: there is no such file.
    """
    path = given or (Path(env) if (env := os.environ.get("FILMLOOP_SITE")) else DEFAULT_SITE)
    if not path.is_file():
        raise ConfigError(
            f"No site file at {path}.",
            hint="Name one with --site FILE, or run from the checkout, where site_configs/local.toml lies.",
            ids={"path": str(path)},
        )
    return path.resolve()


def load_site(path: Path, *, overrides: Mapping[str, Any] | None = None) -> SiteConfig:
    """Read and validate the site file; `overrides` ({"training.min_frames": 10}) replace single keys.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that does not fit.
    """
    try:
        with disk_errors(path):
            text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} is not valid {path.suffix[1:].upper() or 'TOML'}: {exc}.", ids={"path": str(path)}
        ) from exc
    except DataError as exc:
        raise ConfigError(exc.message, hint=exc.hint, ids=exc.ids) from exc
    source = values.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        # Like `home`: cron and systemd start us anywhere.
        source["path"] = str(path.resolve().parent / Path(source["path"]).expanduser())
    for dotted, value in (overrides or {}).items():
        _set(values, dotted.split("."), value)
    return parse_site(values, where=str(path))


def parse_site(values: Mapping[str, Any], *, where: str = "site") -> SiteConfig:
    """Validate plain values.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    try:
        return SiteConfig.model_validate(values)
    except ValidationError as exc:
        problems = [_explain(error, values) for error in exc.errors()]
        raise ConfigError(
            f"{where}: " + "; ".join(problems) + ".",
            hint="docs/reference/config.md lists every key; `filmloop site check` reads the file again.",
            ids={"path": where},
        ) from exc


def find_home(config: SiteConfig, site_file: Path) -> Home:
    """The state folder: FILMLOOP_HOME, else the site's `home` relative to the site file."""
    if env := os.environ.get("FILMLOOP_HOME"):
        return Home(Path(env).expanduser().resolve())
    return Home((site_file.parent / Path(config.home).expanduser()).resolve())


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key} is {below!r} in the site file, not a section.")
        values = below
    values[keys[-1]] = value


def _explain(error: Any, values: Mapping[str, Any]) -> str:
    # pydantic puts the chosen member of a union (simulator, replay) into the location: it is no key of the file.
    place: list[str] = []
    node: Any = values
    for part in error["loc"]:
        if isinstance(node, Mapping) and part not in node and node.get("kind") == part:
            continue
        place.append(str(part))
        node = node.get(part) if isinstance(node, Mapping) else None
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _keys_of(place[:-1], values), n=1)
        return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.kind has to be one of {', '.join(map(repr, _kinds_of(place)))}"
    return f"{key or 'file'}: {error['msg']}"


def _kinds_of(place: list[str]) -> list[str]:
    """The kinds that the top-level section at `place` may be of."""
    section = SiteConfig.model_json_schema()["properties"].get(place[-1], {})
    return sorted(section.get("discriminator", {}).get("mapping", {}))


def _keys_of(place: list[str], values: Mapping[str, Any]) -> list[str]:
    """The keys that the section at `place` may have."""
    schema = SiteConfig.model_json_schema()
    node: Any = schema
    given: Any = values
    for part in place:
        given = given.get(part, {}) if isinstance(given, Mapping) else {}
        node = node.get("properties", {}).get(part, {})
        if mapping := node.get("discriminator", {}).get("mapping"):
            node = {"$ref": mapping.get(given.get("kind"), next(iter(mapping.values())))}
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
