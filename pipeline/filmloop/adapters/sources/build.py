"""From the site's `[source]`, or the `--source` option that replaces it, to a frame source."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filmloop.config.schema import ReplaySource, SimulatorSource
from filmloop.core.errors import ConfigError
from filmloop.ports.source import FrameSource

_HINT = "Examples: --source simulator, --source 'simulator?rate_hz=500', --source 'replay:FILE.h5?loop=true'."


def build_source(section: SimulatorSource | ReplaySource, frame_shape: tuple[int, int]) -> FrameSource:
    """The source that the site file asks for; it touches nothing before `open`.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E) of the site; a recording with other frames is refused when it is opened.
    """
    # Imported when chosen: a replay needs no simulator, and a simulator neither HDF5 nor Zarr.
    if isinstance(section, SimulatorSource):
        from filmloop.adapters.sources.simulator import SimulatorFrameSource

        return SimulatorFrameSource(section, frame_shape)
    from filmloop.adapters.sources.replay import ReplayFrameSource

    return ReplayFrameSource(section, frame_shape)


def stream_name(section: SimulatorSource | ReplaySource) -> str:
    """Name of the stream that the source of this section delivers."""
    if section.stream or isinstance(section, SimulatorSource):
        return section.stream
    from filmloop.adapters.sources.replay import default_stream

    return default_stream(section.path)


def probe_replay(section: ReplaySource) -> tuple[tuple[int, int], int]:
    """Frame shape (C, E) and number of frames of a recording.

    Raises:
        DataError: it is absent or of an unknown form.
    """
    from filmloop.adapters.sources.replay import open_recording

    recording = open_recording(Path(section.path).expanduser())
    try:
        return recording.frame_shape, sum(recording.run_frames)
    finally:
        recording.close()


def parse_source_option(text: str) -> dict[str, Any]:
    """`KIND[:PATH][?key=value&...]` as the site file's `[source]` table.

    A relative path is taken from the working directory. Keys and values are checked by the site's schema later.

    Raises:
        ConfigError: an unknown kind, a path where none belongs or none where one does, a pair without `=`.
    """
    head, _, query = text.partition("?")
    kind, colon, path = head.partition(":")
    if kind not in ("simulator", "replay"):
        raise ConfigError(f"Unknown source {kind!r}; it is simulator or replay.", hint=_HINT)
    if (kind == "replay") != bool(path) or (kind == "simulator" and colon):
        raise ConfigError(f"Source {head!r}: replay needs a path, simulator has none.", hint=_HINT)
    table: dict[str, Any] = {"kind": kind}
    if path:
        table["path"] = str(Path(path).expanduser().absolute())
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"Source {text!r}: {pair!r} is not key=value.", hint=_HINT)
        table[key] = _value(unquote(value))
    return table


def _value(text: str) -> Any:
    """A TOML value where it is one (true, 500, 0.5), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
