"""The files of a Zarr v3 group, made by hand: packed while rows come, written once.

https://zarr-specs.readthedocs.io/en/latest/v3/core/ and .../v3/codecs/sharding-indexed/. Every chunk is written, zeros
too, so that a missing file is never a legitimate one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.core.documents import FileDigest
from filmloop.staging.codec import CRC32C, Codec, bytes_codec, crc32c

Pieces = list[bytes]
PackAll = Callable[
    [Callable[[npt.NDArray[Any]], tuple[bytes, bytes]], Iterable[npt.NDArray[Any]]], Iterable[tuple[bytes, bytes]]
]


class ChunkedColumn:
    """Rows of one array, packed chunk by chunk as they fill; what is packed takes a fraction of the rows' memory.

    Args:
        dtype: Type of the stored numbers; rows of another are converted.
        row_shape: Shape of one row; () for an array of one axis.
        chunk_rows: Rows that are packed together.
        codec: How.
        pack_all: `map`, or one that works on several chunks at once.

    Attributes:
        rows: Rows taken so far.
    """

    def __init__(
        self, dtype: str, row_shape: tuple[int, ...], chunk_rows: int, codec: Codec, pack_all: PackAll = map
    ) -> None:
        self.rows, self._pack_all = 0, pack_all
        self._dtype, self._row_shape, self._chunk_rows, self._codec = np.dtype(dtype), row_shape, chunk_rows, codec
        # np.empty: pages of a chunk that never fills are never touched.
        self._open = np.empty((chunk_rows, *row_shape), dtype)
        self._packed: list[tuple[bytes, bytes]] = []

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk on disk: fewer than asked for where there are not so many."""
        return max(1, min(self._chunk_rows, self.rows))

    @property
    def chunks(self) -> int:
        """Chunks on disk; one of zeros where there is no row."""
        return max(1, -(-self.rows // self._chunk_rows))

    def append(self, rows: npt.NDArray[np.generic]) -> None:
        """Take rows. Whole chunks are packed from where they lie, side by side; anything less is copied first."""
        done = self._append_whole(rows)
        while done < len(rows):
            filled = self.rows % self._chunk_rows
            part = rows[done : done + self._chunk_rows - filled]
            self._open[filled : filled + len(part)] = part
            if filled + len(part) == self._chunk_rows:
                self._packed.append(self._codec.pack(self._open))
            self.rows += len(part)
            done += len(part)
            if self.rows % self._chunk_rows == 0:
                done += self._append_whole(rows[done:])

    def _append_whole(self, rows: npt.NDArray[np.generic]) -> int:
        """Pack the whole chunks at the beginning of `rows`, if no chunk is open; returns their rows."""
        chunks = len(rows) // self._chunk_rows
        if self.rows % self._chunk_rows or not chunks or rows.dtype != self._dtype or not rows.flags.c_contiguous:
            return 0
        whole = chunks * self._chunk_rows
        self._packed += self._pack_all(self._codec.pack, np.split(rows[:whole], chunks))
        self.rows += whole
        return whole

    def file(self) -> Pieces:
        """The whole `sharding_indexed` file: chunks, padded with zeros, then where they lie. Changes nothing."""
        packed, left = list(self._packed), self.rows - len(self._packed) * self._chunk_rows
        if left or not packed:
            last = np.zeros((self.chunk_rows, *self._row_shape), self._dtype)
            last[:left] = self._open[:left]
            packed.append(self._codec.pack(last))
        size_bytes_K = np.array([len(data) + len(crc) for data, crc in packed], "<u8")
        place_K = np.cumsum(size_bytes_K) - size_bytes_K
        index = np.stack([place_K, size_bytes_K], axis=1).astype("<u8").tobytes()
        return [piece for chunk in packed for piece in chunk] + [index, crc32c(index)]

    def metadata(self, dimension_names: tuple[str, ...]) -> dict[str, Any]:
        """`zarr.json` of the array as it is now."""
        sharding = {
            "chunk_shape": [self.chunk_rows, *self._row_shape],
            "codecs": self._codec.metadata(),
            "index_codecs": [bytes_codec(8), CRC32C],
            "index_location": "end",
        }
        return array_metadata(
            shape=(self.rows, *self._row_shape),
            dtype=self._dtype,
            chunk_shape=(self.chunks * self.chunk_rows, *self._row_shape),
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
            dimension_names=dimension_names,
        )


def array_metadata(
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunk_shape: tuple[int, ...],
    codecs: list[dict[str, Any]],
    dimension_names: tuple[str, ...],
) -> dict[str, Any]:
    """`zarr.json` of an array whose one file holds all of it."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dimension_names),
        "storage_transformers": [],
    }


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


class GroupFolder:
    """Writes the files of a group, each once, and hashes the bytes as they go out.

    Args:
        path: The folder; made here.

    Attributes:
        files: What was written, paths relative to the folder.
    """

    def __init__(self, path: Path) -> None:
        self.files: list[FileDigest] = []
        self._path = path
        path.mkdir()

    def write_metadata(self, name: str, value: dict[str, Any]) -> None:
        """Write a `zarr.json`."""
        self.write(name, [json.dumps(value, indent=2).encode() + b"\n"])

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write the file `name` from its pieces; durable only after an fsync.

        Raises:
            OSError: the disk refuses.
        """
        digest, size_bytes = hashlib.sha256(), 0
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            for piece in pieces:
                out.write(piece)
                digest.update(piece)
                size_bytes += len(piece)
        self.files.append(FileDigest(path=name, size_bytes=size_bytes, sha256=digest.hexdigest()))
