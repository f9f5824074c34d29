"""The message of SLAC's lclstreamer: an HDF5 file of a batch of events, every array with a row an event.

Its `HDF5BinarySerializer` writes the arrays at configured paths, chunked by event and packed with gzip, bitshuffle (LZ4
or Zstd), zfp or nothing; its `BinaryDataStreamingDataHandler` pushes each file as one message, several ranks at once, with
no mark at the end of the stream. `Psana2Timestamp` is a float64: an LCLS-II time stamp (seconds in the upper 32 bits) then has
a grid of 1024 ns or less, enough at 929 kHz. A value that psana lacks is NaN or -999.
zfp without its reversible mode changes integers: use it on floats, where small counts come out exact.
Source: https://github.com/slac-lcls/lclstreamer, commit 66cc566. Shape suffixes: N events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.live import Malformed
from filmloop.config.sources import EventFields

FILTERS = tuple(hdf5plugin.FILTERS)
"""Names of the filters that can be unpacked; importing the plugin registers them with HDF5."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, KeyError, MemoryError)
"""What h5py raises of damaged files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """The arrays of one message; absent ones are None.

    Attributes:
        pulse_id_N: uint64 (N,).
        kept_N: Which rows of the other arrays have a pulse id, (rows,); None: all of them.
        counts: (rows, ...), or None in form hits.
        hits: Padded (rows, M) or (rows, M, 2), or flat with offsets.
        hit_count_N: (rows,).
        hit_offset_N: (rows + 1,).
        run_N: (rows,).
    """

    pulse_id_N: npt.NDArray[np.uint64]
    kept_N: npt.NDArray[np.bool_] | None
    counts: npt.NDArray[Any] | None = None
    hits: npt.NDArray[Any] | None = None
    hit_count_N: npt.NDArray[Any] | None = None
    hit_offset_N: npt.NDArray[Any] | None = None
    run_N: npt.NDArray[Any] | None = None

    @property
    def refused(self) -> int:
        """Events without a pulse id."""
        return 0 if self.kept_N is None else int(np.count_nonzero(~self.kept_N))


def decode(image: memoryview, fields: EventFields, *, form: str, pulse_id_scale: float, max_bytes: int) -> EventBatch:
    """Read the arrays of a message.

    Args:
        image: The file.
        fields: Where what lies.
        form: `counts` or `hits`.
        pulse_id_scale: What a pulse id that is a float is multiplied by.
        max_bytes: Most bytes of all arrays together, and of one chunk, once unpacked.

    Raises:
        Malformed: no HDF5 file, an array is absent, too large, packed in an unknown way, or has another number of rows.
    """
    with _opened(image) as file:
        reader = _Reader(file, max_bytes)
        pulse_id_N, kept_N = pulse_ids(reader.array(fields.pulse_id), pulse_id_scale)
        rows = len(pulse_id_N) if kept_N is None else len(kept_N)
        flat = form == "hits" and bool(fields.hit_offsets)
        return EventBatch(
            pulse_id_N=pulse_id_N,
            kept_N=kept_N,
            counts=reader.array(fields.counts, rows) if form == "counts" else None,
            hits=reader.array(fields.hits, None if flat else rows) if form == "hits" else None,
            hit_count_N=reader.array(fields.hit_counts, rows) if form == "hits" and fields.hit_counts else None,
            hit_offset_N=reader.array(fields.hit_offsets, rows + 1) if flat else None,
            run_N=reader.array(fields.run_number, rows) if fields.run_number else None,
        )


def pulse_ids(raw_N: npt.NDArray[Any], scale: float) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_] | None]:
    """Pulse ids uint64, and which rows have one (None: all); a row without is negative or not finite.

    Raises:
        Malformed: they are no numbers, or not one a row.
    """
    if raw_N.ndim != 1 or raw_N.dtype.kind not in "uif":
        raise Malformed(f"its pulse ids are {raw_N.dtype} {raw_N.shape}, not numbers (N,)")
    if raw_N.dtype.kind == "u":
        return raw_N.astype(np.uint64), None
    with np.errstate(over="ignore"):
        value_N = raw_N if raw_N.dtype.kind == "i" else np.rint(raw_N.astype(np.float64) * scale)
    kept_N = value_N >= 0
    if raw_N.dtype.kind == "f":
        kept_N &= value_N < 2.0**64  # false for NaN, too
    if kept_N.all():
        return value_N.astype(np.uint64), None
    return value_N[kept_N].astype(np.uint64), np.asarray(kept_N)


@contextmanager
def _opened(image: memoryview) -> Iterator[h5py.File]:
    """The file in memory, read only."""
    if bytes(image[:8]) != _SIGNATURE:
        raise Malformed(f"{len(image)} bytes that are no HDF5 file")
    try:
        file = h5py.File(h5py.h5f.open_file_image(image))
    except _UNREADABLE as exc:
        raise Malformed(f"no readable HDF5 file: {exc}") from exc
    try:
        yield file
    finally:
        file.close()


class _Reader:
    def __init__(self, file: h5py.File, max_bytes: int) -> None:
        self._file, self._left_bytes = file, max_bytes

    def array(self, path: str, rows: int | None = None) -> npt.NDArray[Any]:
        """The data set at `path`, after a look at what it would take."""
        try:
            data = self._file.get(path)
            if not isinstance(data, h5py.Dataset) or data.file != self._file:
                raise Malformed(f"it has no data set {path}; it holds {self._names()}")
            self._check(path, data, rows)
            return np.asarray(data[()])
        except _UNREADABLE as exc:
            raise Malformed(f"{path} cannot be read: {exc}") from exc

    def _names(self) -> str:
        try:
            # A damaged name comes as bytes.
            return ", ".join(sorted(map(str, self._file))[:8]) or "nothing"
        except _UNREADABLE:
            return "links that cannot be read"

    def _check(self, path: str, data: h5py.Dataset, rows: int | None) -> None:
        if data.is_virtual or data.external or data.dtype.kind not in "uifb" or data.ndim == 0:
            raise Malformed(f"{path} is {data.dtype} {data.shape}, not an array of numbers in the message")
        if rows is not None and data.shape[0] != rows:
            raise Malformed(f"{path} has {data.shape[0]} rows, not {rows}")
        # Python's integers: sizes of 64 bits in many dimensions go beyond a float's, too.
        chunk_bytes = math.prod(data.chunks or (0,)) * data.dtype.itemsize
        size_bytes = math.prod(data.shape) * data.dtype.itemsize
        if max(size_bytes, chunk_bytes) > self._left_bytes:
            raise Malformed(f"{path} would take {max(size_bytes, chunk_bytes) / 1e6:.0f} MB; max_message_mb forbids it")
        self._left_bytes -= size_bytes
