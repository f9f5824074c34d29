"""From a TOML file to a SiteConfig, with errors that name the key and what it may be.

A resolved configuration (`config.json` beside every cycle) is a site file too.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filmloop.config.paths import Home
from filmloop.config.problems import Place, validated
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.fsio import disk_errors
from filmloop.core.wording import shown

DEFAULT_SITE = Path("site_configs/local.toml")
_NO_FILE = "site"


def find_site(given: Path | None) -> Path:
    """The site file: `--site`, else FILMLOOP_SITE, else `site_configs/local.toml` here.

    Raises:
        ConfigError: there is no such file.
    """
    env = os.environ.get("FILMLOOP_SITE")
    path = given or (Path(env) if env else DEFAULT_SITE)
    if not os.path.isfile(path):  # says no, too, of a name that no file can have
        named = ", which FILMLOOP_SITE names" if env and not given else ""
        what = f"{path} is a folder, not a site file" if os.path.isdir(path) else f"No site file at {path}"
        raise ConfigError(
            f"{what}{named}.",
            hint="Name one with --site FILE, or run from the checkout, where site_configs/local.toml lies.",
            ids={"path": str(path)},
        )
    return path.resolve()


def load_site(
    path: Path, *, overrides: Mapping[str, Any] | None = None, options: Mapping[str, str] | None = None
) -> SiteConfig:
    """Read and validate the site file; `overrides` ({"training.min_frames": 10}) replace single keys.

    Args:
        path: A site file, or a resolved configuration.
        overrides: Values by key.
        options: What brought each of them, as `--set training.min_frames=10`: an error names it.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that does not fit.
    """
    values = _read(path)
    source = values.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        # Like `home`: cron and systemd start us anywhere.
        source["path"] = str(path.resolve().parent / Path(source["path"]).expanduser())
    for dotted, value in (overrides or {}).items():
        _set(values, dotted.split("."), value, said=(options or {}).get(dotted, dotted))
    return parse_site(values, where=str(path), options=options)


def _read(path: Path) -> dict[str, Any]:
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        with disk_errors(path):
            text = path.read_text(encoding="utf-8")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # also of a number with too many digits
        why = "it is no text in UTF-8" if isinstance(exc, UnicodeDecodeError) else exc
        raise ConfigError(
            f"{path} is not valid {kind}: {why}.",
            hint="Compare with site_configs/local.toml.",
            ids={"path": str(path)},
        ) from exc
    except DataError as exc:
        raise ConfigError(exc.message, hint=exc.hint, ids=exc.ids) from exc
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no table of keys and values.",
            hint="Compare with site_configs/local.toml.",
            ids={"path": str(path)},
        )
    return values


def parse_site(
    values: Mapping[str, Any], *, where: str = _NO_FILE, options: Mapping[str, str] | None = None
) -> SiteConfig:
    """Validate plain values.

    Args:
        values: As a site file holds them.
        where: The file.
        options: See `load_site`.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    config, problems = validated(values)
    if config is not None:
        return config
    told: dict[str, list[str]] = {}
    for problem in problems:
        told.setdefault(_brought_by(problem.place, where, options or {}), []).append(problem.text)
    file = any(who.startswith(where) for who in told)
    again = "; `filmloop site check` reads the file again" if file else ""
    raise ConfigError(
        " ".join(f"{who}: {'; '.join(texts)}." for who, texts in told.items()),
        hint=f"docs/reference/config.md lists every key{again}.",
        ids={"path": where} if file and where != _NO_FILE else None,
    )


def _brought_by(place: Place, where: str, options: Mapping[str, str]) -> str:
    """Who gave the value at `place`: an option, the file, or both where keys do not fit together."""
    keys = tuple(map(str, place))
    given = {tuple(dotted.split(".")): text for dotted, text in options.items()}
    if above := [option for option in given if keys[: len(option)] == option]:
        return given[max(above, key=len)]
    parts = [text for option, text in given.items() if option[: len(keys)] == keys or _chooses(option, keys)]
    return f"{where} with {' and '.join(parts)}" if parts else where


def _chooses(option: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    """A kind says which other keys its section may have, and must have."""
    return option[-1] == "kind" and keys[: len(option) - 1] == option[:-1]


def find_home(config: SiteConfig, site_file: Path) -> Home:
    """The state folder: FILMLOOP_HOME, else the site's `home` relative to the site file."""
    if env := os.environ.get("FILMLOOP_HOME"):
        return Home(Path(env).expanduser().resolve())
    return Home((site_file.parent / Path(config.home).expanduser()).resolve())


def _set(values: dict[str, Any], keys: list[str], value: Any, *, said: str) -> None:
    for key in keys[:-1]:
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(
                f"{said}: {key} is {shown(below)}, not a section.",
                hint="docs/reference/config.md lists the keys of each section.",
            )
        values = below
    values[keys[-1]] = value
