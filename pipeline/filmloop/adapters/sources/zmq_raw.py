"""The lean message of a detector at full rate: a header of 40 bytes and the frames as they lie in memory.

A message is one ZeroMQ multipart:

    part      when             what
    header    always           `HEADER`, little endian
    ids       flag `HAS_IDS`   pulse id of every frame, uint64 (N,); else they count up from `first_pulse_id`
    flags     flag `HAS_FLAGS` bits `SATURATED` and `BAD` of every frame, uint8 (N,)
    payload   always           counts (N, C, E) of `dtype`; with flag `IS_HITS` flat bins (K,) of `dtype`
    offsets   flag `IS_HITS`   first hit of every frame and the end, uint64 (N + 1,)

The header holds: magic `FLMZ`, version, flags, run number, first pulse id, N, C, E, and the type of the payload in four
characters of numpy's notation (`|u1`, `<u2`, `<f4`, ...). Shape suffixes: N frames, C channels, E energy bins, K hits.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.live import Malformed
from filmloop.core.types import MAX_RUN

HEADER = struct.Struct("<4sHHQQIII4s")
MAGIC, VERSION = b"FLMZ", 1
HAS_IDS, IS_HITS, HAS_FLAGS = 1, 2, 4
_TYPES = {
    f"{order}{kind}".encode() for order in "<|" for kind in ("u1", "u2", "u4", "u8", "i2", "i4", "i8", "f4", "f8")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message taken apart; every array is a view of what was received.

    Attributes:
        run_number: Run of all frames.
        pulse_id_N: uint64 (N,).
        payload: Counts (N, C, E), or flat bins (K,) if there are offsets.
        offset_N: uint64 (N + 1,), or None.
        flags_N: uint8 (N,), or None.
        frame_shape: (C, E) that the header names.
    """

    run_number: int
    pulse_id_N: npt.NDArray[np.uint64]
    payload: npt.NDArray[Any]
    offset_N: npt.NDArray[np.uint64] | None
    flags_N: npt.NDArray[np.uint8] | None
    frame_shape: tuple[int, int]


def decode(parts: Sequence[memoryview], *, max_bytes: int) -> RawMessage:
    """Take a message apart without a copy.

    Args:
        parts: As they were received.
        max_bytes: Most bytes of its frames, a byte a bin, and of their pulse ids.

    Raises:
        Malformed: it is not one, its parts are not as long as its header says, or its frames would take too much.
    """
    if not parts or len(parts[0]) != HEADER.size:
        raise Malformed(f"its first part has {len(parts[0]) if parts else 0} bytes, a header has {HEADER.size}")
    magic, version, flags, run, first_id, frames, channels, energy_bins, code = HEADER.unpack(parts[0])
    if (magic, version) != (MAGIC, VERSION):
        raise Malformed(f"it begins with {magic!r} version {version}, not {MAGIC!r} version {VERSION}")
    code = code.rstrip(b"\0 ")
    if code not in _TYPES:
        raise Malformed(f"its payload is of type {code!r}")
    if run > MAX_RUN:
        raise Malformed(f"its run number is {run}, the highest is {MAX_RUN}")
    dtype, hits = np.dtype(code.decode()), bool(flags & IS_HITS)
    wanted = 2 + bool(flags & HAS_IDS) + bool(flags & HAS_FLAGS) + hits
    if len(parts) != wanted:
        raise Malformed(f"it has {len(parts)} parts, its header says {wanted}")
    rest = list(parts[1:])
    id_N = _array(rest.pop(0), "<u8", frames) if flags & HAS_IDS else None
    flags_N = _array(rest.pop(0), "u1", frames) if flags & HAS_FLAGS else None
    payload = _array(rest[0], dtype, None if hits else frames * channels * energy_bins)
    offset_N = _array(rest[1], "<u8", frames + 1) if hits else None
    # Only now: the parts are there, so the number of frames is no mere claim. Hits say little of what counts would take.
    if not channels or not energy_bins:
        raise Malformed(f"its frames are of shape {(channels, energy_bins)}")
    size_bytes = max(frames, 1) * max(channels * energy_bins, 8)
    if size_bytes > max_bytes:
        what = f"{frames} frames of {(channels, energy_bins)} would take {size_bytes / 1e6:.0f} MB"
        raise Malformed(f"{what}; max_message_mb forbids it")
    if id_N is None:
        if first_id + frames > 2**64:
            raise Malformed(f"its pulse ids begin at {first_id}")
        id_N = np.arange(first_id, first_id + frames, dtype=np.uint64)
    return RawMessage(
        run_number=run,
        pulse_id_N=id_N,
        payload=payload if hits else payload.reshape(frames, channels, energy_bins),
        offset_N=offset_N,
        flags_N=flags_N,
        frame_shape=(channels, energy_bins),
    )


def _array(part: memoryview, dtype: npt.DTypeLike, length: int | None) -> npt.NDArray[Any]:
    size_bytes = np.dtype(dtype).itemsize
    if len(part) % size_bytes or (length is not None and len(part) != length * size_bytes):
        said = "" if length is None else f", its header says {length * size_bytes}"
        raise Malformed(f"a part has {len(part)} bytes of {np.dtype(dtype).name}{said}")
    return np.frombuffer(part, dtype)


def encode(
    payload: npt.NDArray[Any],
    *,
    run_number: int,
    first_pulse_id: int = 0,
    pulse_id_N: npt.NDArray[np.uint64] | None = None,
    flags_N: npt.NDArray[np.uint8] | None = None,
    offset_N: npt.NDArray[np.uint64] | None = None,
    frame_shape: tuple[int, int] | None = None,
) -> list[bytes | npt.NDArray[Any]]:
    """The parts of a message: counts (N, C, E), or flat bins (K,) with their offsets (N + 1,) and the frame shape."""
    frames = len(payload) if offset_N is None else len(offset_N) - 1
    channels, energy_bins = frame_shape or payload.shape[1:]
    flags = (HAS_IDS if pulse_id_N is not None else 0) | (IS_HITS if offset_N is not None else 0)
    flags |= HAS_FLAGS if flags_N is not None else 0
    little = payload.dtype.newbyteorder("<")
    header = HEADER.pack(
        MAGIC, VERSION, flags, run_number, first_pulse_id, frames, channels, energy_bins, little.str.encode()
    )
    parts: list[bytes | npt.NDArray[Any]] = [header]
    if pulse_id_N is not None:
        parts.append(np.ascontiguousarray(pulse_id_N, "<u8"))
    if flags_N is not None:
        parts.append(np.ascontiguousarray(flags_N, "u1"))
    parts.append(np.ascontiguousarray(payload, little))
    if offset_N is not None:
        parts.append(np.ascontiguousarray(offset_N, "<u8"))
    return parts
