"""What lies in an NTNDArray: pixels, packed or not, and the number that it goes by.

areaDetector's NDPluginCodec packs `value` into bytes; `codec.name` says how and `codec.parameters` of which type the pixels
were, as the ordinal of pvData's ScalarType. Its `lz4` is a bare LZ4 block.
Sources: https://areadetector.github.io/areaDetector/ADCore/NDPluginCodec.html,
https://github.com/areaDetector/ADViewers (Python/PY_NTNDA_Viewer/codecAD.py).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.live import Malformed

_SCALAR_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64",
)  # fmt: skip

_MOST_DIMENSIONS = 10
"""Of an areaDetector's array: its ND_ARRAY_MAX_DIMS."""


def pixels(update: Any, max_bytes: int) -> npt.NDArray[Any]:
    """The array of an update, in numpy's order of axes.

    Raises:
        Malformed: it is packed in an unknown way, too large, or not as long as its dimensions say.
        AttributeError, KeyError, TypeError: a field of NTNDArray is absent.
    """
    shape = tuple(int(dimension.size) for dimension in reversed(update.dimension))
    if any(size < 0 for size in shape):
        raise Malformed(f"dimensions {shape}")
    if len(shape) > _MOST_DIMENSIONS:
        raise Malformed(f"an array of {len(shape)} dimensions")
    flat = np.asarray(update.value)
    codec = update.codec.name if "codec" in update else ""
    if codec:
        flat = _unpacked(flat, codec, update.codec.parameters, shape, max_bytes)
    if flat.size != int(np.prod(shape, dtype=np.float64)):
        raise Malformed(f"{flat.size} pixels for dimensions {shape}")
    try:
        return flat.reshape(shape)
    except ValueError as exc:  # no pixel, and the other dimensions beyond all memory
        raise Malformed(f"dimensions {shape}: {exc}") from exc


def _unpacked(
    packed: npt.NDArray[Any], codec: str, parameters: Any, shape: tuple[int, ...], max_bytes: int
) -> npt.NDArray[Any]:
    ordinal = int(parameters) if isinstance(parameters, (int, np.integer)) else -1
    if not 0 <= ordinal < len(_SCALAR_TYPES):
        raise Malformed(f"codec {codec!r} does not name the pixels' type, but {parameters!r}")
    dtype = np.dtype(_SCALAR_TYPES[ordinal])
    wanted_bytes = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
    if wanted_bytes > max_bytes:
        raise Malformed(f"{wanted_bytes / 1e6:.0f} MB once unpacked; max_update_mb forbids it")
    data = packed.view(np.uint8).tobytes()
    try:
        import numcodecs
    except ModuleNotFoundError as exc:
        raise Malformed(f"codec {codec!r} needs numcodecs, which is not installed") from exc
    if codec == "blosc":
        # Its header of 16 bytes says at 4 how much memory it would take.
        if len(data) < 16 or struct.unpack_from("<I", data, 4)[0] != wanted_bytes:
            raise Malformed(f"a blosc block that does not hold the {wanted_bytes} bytes of {shape}")
        unpack, coded = numcodecs.Blosc(), data
    elif codec == "lz4":
        # numcodecs wants the length in front, which the bare block lacks.
        unpack, coded = numcodecs.LZ4(), struct.pack("<I", wanted_bytes) + data
    else:
        raise Malformed(f"codec {codec!r} is not one of blosc, lz4")
    try:
        return np.frombuffer(unpack.decode(coded), dtype)
    except (RuntimeError, ValueError) as exc:
        raise Malformed(f"{codec} cannot unpack it: {exc}") from exc


def pulse_id_of(update: Any, where: str, attribute: str) -> npt.NDArray[np.uint64]:
    """The number of an update, uint64: of its first frame (), or of each frame (N,) where an attribute holds an array.

    Args:
        update: The NTNDArray.
        where: `uniqueId`, `timeStamp` (dataTimeStamp in ns since 1970) or `attribute`.
        attribute: Name of the attribute.

    Raises:
        Malformed: there is no such number, it is no whole one, or not of 64 bits.
    """
    if where == "uniqueId":
        found: Any = update.uniqueId
    elif where == "timeStamp":
        stamp = update.dataTimeStamp
        found = int(stamp.secondsPastEpoch) * 10**9 + int(stamp.nanoseconds)
    else:
        found = next((entry.value for entry in update.attribute if entry.name == attribute), None)
    number = np.asarray(found)
    # NaN compares false: it is outside.
    if number.dtype.kind not in "uif" or number.ndim > 1 or not ((number >= 0) & (number < 2.0**64)).all():
        raise Malformed(f"its {attribute or where} {found!r} is no pulse id")
    if (number != np.rint(number)).any():
        raise Malformed(f"its {attribute or where} {found!r} is no whole number")
    return number.astype(np.uint64)
