"""The arrays of a shard: the one list that writer, reader and verify agree on.

Shape suffixes: N frames, C channels, E energy bins, H hits of all frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 2
"""2 added `weight` and the event-list layout. Shards of version 1 are read as before, each frame with weight 1."""

Layout = Literal["dense", "events"]
Rows = Literal["frames", "hits", "offsets"]

COUNTS = "counts"
HITS = "hits"
OFFSETS = "offsets"
PULSE_ID = "pulse_id"
FLAGS = "flags"
VERSION = "version"
PHASE = "phase"
WEIGHT = "weight"
LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array of the group.

    Attributes:
        name: Its folder in the group.
        dtype: NumPy name of the stored type.
        rows: What its first axis counts: frames; hits; or the N + 1 places where the hits of a frame begin and end.
        image: (rows, C, E) if True, else (rows,).
        chunked: One file of many chunks (`sharding_indexed`) that fill while frames come, else a single chunk.
        compressor: `lz4`, `zstd`, or None for arrays too small to matter. A CRC-32C follows it in every case.
    """

    name: str
    dtype: str
    rows: Rows = "frames"
    image: bool = False
    chunked: bool = False
    compressor: Literal["lz4", "zstd"] | None = None

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """What xarray calls the axes."""
        first = {"frames": "frame", "hits": "hit", "offsets": "offset"}[self.rows]
        return (first, "channel", "energy") if self.image else (first,)

    def row_shape(self, frame_shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one row, for frames of `frame_shape` = (C, E)."""
        return frame_shape if self.image else ()

    def data_file(self) -> str:
        """The one file that holds the array's values, relative to the group: Zarr's key of chunk zero."""
        return f"{self.name}/c/0/0/0" if self.image else f"{self.name}/c/0"


_COUNTS = ArraySpec(name=COUNTS, dtype="uint8", image=True, chunked=True, compressor="lz4")
_HITS = ArraySpec(name=HITS, dtype="uint16", rows="hits", chunked=True, compressor="lz4")
_OFFSETS = ArraySpec(name=OFFSETS, dtype="uint64", rows="offsets", compressor="zstd")
_FRAMES = {
    "dense": (_COUNTS,),
    "events": (_HITS, _OFFSETS),
}
_COMMON = (
    ArraySpec(name=PULSE_ID, dtype="uint64", compressor="zstd"),
    ArraySpec(name=FLAGS, dtype="uint8", compressor="lz4"),
    ArraySpec(name=VERSION, dtype="uint32", compressor="lz4"),
    ArraySpec(name=PHASE, dtype="float32"),
)
_WEIGHT = ArraySpec(name=WEIGHT, dtype="float32", compressor="lz4")
# float16 halves a shard with labels; its relative step of 5e-4 is far below the Poisson noise of any count.
_LABEL = ArraySpec(name=LABEL, dtype="float16", image=True, chunked=True, compressor="zstd")


def array_specs(labelled: bool, layout: Layout = "dense", version: int = SCHEMA_VERSION) -> tuple[ArraySpec, ...]:
    """The arrays of a shard: with or without labels, dense or as a list of hits, of a version of this schema."""
    weight = (_WEIGHT,) if version > 1 else ()
    label = (_LABEL,) if labelled else ()
    return (*_FRAMES[layout], *_COMMON, *weight, *label)
