"""From the site's `[source]`, or the `--source` option that replaces it, to a frame source."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filmloop.config.options import toml_value
from filmloop.config.sources import AnySource, ReplaySource, SimulatorSource, ZeroMqSource
from filmloop.core.errors import ConfigError
from filmloop.ports.source import FrameSource

_HINT = (
    "Examples: --source 'simulator?rate_hz=500', --source 'replay:FILE.h5?loop=true', "
    "--source 'zeromq:tcp://127.0.0.1:5555?dialect=raw', --source pvaccess:MRCO:Pva1:Image."
)
_NEEDS = {"simulator": "", "replay": "a path", "zeromq": "an endpoint", "pvaccess": "a channel"}
LIVE_HINT = "pip install -c constraints.txt -e '.[live]'"
"""What to do where the library of a live source is not installed."""


def build_source(section: AnySource, frame_shape: tuple[int, int]) -> FrameSource:
    """The source that the site file asks for; it touches nothing before `open`.

    Args:
        section: The site's `[source]`.
        frame_shape: (C, E) of the site; a recording with other frames is refused when it is opened.

    Raises:
        ConfigError: the library that it needs is not installed.
    """
    # Imported when chosen: a replay needs no simulator, and a simulator neither HDF5 nor Zarr nor a network library.
    if isinstance(section, SimulatorSource):
        return _simulator(section, frame_shape)
    if isinstance(section, ReplaySource):
        from filmloop.adapters.sources.replay import ReplayFrameSource

        return ReplayFrameSource(section, frame_shape)
    try:
        if isinstance(section, ZeroMqSource):
            from filmloop.adapters.sources.zmq_source import ZeroMqFrameSource

            return ZeroMqFrameSource(section, frame_shape)
        from filmloop.adapters.sources.pvaccess import PvAccessFrameSource

        return PvAccessFrameSource(section, frame_shape)
    except ModuleNotFoundError as exc:
        package = str(exc.name).partition(".")[0]
        raise ConfigError(f"A {section.kind} source needs {package}, which is not installed.", hint=LIVE_HINT) from exc


def _simulator(section: SimulatorSource, frame_shape: tuple[int, int]) -> FrameSource:
    if section.pool_frames:
        from filmloop.adapters.sources.pool import PoolFrameSource

        return PoolFrameSource(section, frame_shape)
    from filmloop.adapters.sources.simulator import SimulatorFrameSource

    return SimulatorFrameSource(section, frame_shape)


def stream_name(section: AnySource) -> str:
    """Name of the stream that the source of this section delivers."""
    if section.stream or not isinstance(section, ReplaySource):
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
    """`KIND[:WHAT][?key=value&...]` as the site file's `[source]` table.

    WHAT is the path of a replay, taken from the working directory if it is relative; the endpoints of zeromq, with
    commas between them; the channel of pvaccess. A key of a section within takes a dot (`fields.counts=/data/x`).
    Keys and values are checked by the site's schema later.

    Raises:
        ConfigError: an unknown kind, a path where none belongs or none where one does, a pair without `=`.
    """
    head, _, query = text.partition("?")
    kind, colon, what = head.partition(":")
    if kind not in _NEEDS:
        raise ConfigError(f"Unknown source {kind!r}; it is one of {', '.join(_NEEDS)}.", hint=_HINT)
    if bool(_NEEDS[kind]) != bool(what) or (colon and not what):
        raise ConfigError(f"Source {head!r}: {kind} needs {_NEEDS[kind] or 'nothing behind it'}.", hint=_HINT)
    table: dict[str, Any] = {"kind": kind}
    if kind == "replay":
        table["path"] = str(Path(what).expanduser().absolute())
    elif kind == "zeromq":
        table["endpoints"] = what.split(",")
    elif kind == "pvaccess":
        table["channel"] = what
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"Source {text!r}: {pair!r} is not key=value.", hint=_HINT)
        section, _, name = key.rpartition(".")
        place = table.setdefault(section, {}) if section else table
        if not isinstance(place, dict):
            raise ConfigError(f"Source {text!r}: {section!r} is no section.", hint=_HINT)
        place[name] = toml_value(unquote(value))
    return table
