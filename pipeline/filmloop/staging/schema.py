"""The arrays of a shard: the one list that writer, reader and verify agree on.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1

COUNTS = "counts"
PULSE_ID = "pulse_id"
FLAGS = "flags"
VERSION = "version"
PHASE = "phase"
LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array of the group.

    Attributes:
        name: Its folder in the group.
        dtype: NumPy name of the stored type.
        image: (N, C, E) if True, else (N,).
        compressor: `lz4`, `zstd`, or None for arrays too small to matter. A CRC-32C follows it in every case.
    """

    name: str
    dtype: str
    image: bool = False
    compressor: Literal["lz4", "zstd"] | None = None

    def shape(self, frames: int, frame_shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape for `frames` frames of `frame_shape` = (C, E)."""
        return (frames, *frame_shape) if self.image else (frames,)

    def data_file(self) -> str:
        """The one file that holds the array's values, relative to the group: Zarr's key of chunk zero."""
        return f"{self.name}/c/0/0/0" if self.image else f"{self.name}/c/0"


_COMMON = (
    ArraySpec(name=COUNTS, dtype="uint8", image=True, compressor="lz4"),
    ArraySpec(name=PULSE_ID, dtype="uint64", compressor="zstd"),
    ArraySpec(name=FLAGS, dtype="uint8", compressor="lz4"),
    ArraySpec(name=VERSION, dtype="uint32", compressor="lz4"),
    ArraySpec(name=PHASE, dtype="float32"),
)
# float16 halves a shard with labels; its relative step of 5e-4 is far below the Poisson noise of any count.
_LABEL = ArraySpec(name=LABEL, dtype="float16", image=True, compressor="zstd")


def array_specs(labelled: bool) -> tuple[ArraySpec, ...]:
    """The arrays of a shard with or without labels."""
    return (*_COMMON, _LABEL) if labelled else _COMMON
