"""The frames of an open shard in memory, packed as far as chunks are full.

Shape suffixes: N frames, C channels, E energy bins, H hits of all frames, N1 = N + 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.core.types import FrameBlock
from filmloop.staging.codec import Codec
from filmloop.staging.events import Events
from filmloop.staging.layout import METADATA
from filmloop.staging.schema import (
    COUNTS,
    FLAGS,
    HITS,
    LABEL,
    OFFSETS,
    PHASE,
    PULSE_ID,
    VERSION,
    WEIGHT,
    ArraySpec,
    Layout,
    array_specs,
)
from filmloop.staging.zarrfile import ChunkedColumn, GroupFolder, PackAll, array_metadata

HITS_PER_CHUNK = 262144
"""512 KB: as many hits as some 750 frames of 16x128 bring at 350 a frame."""


class FrameColumns:
    """Every array of one shard.

    Args:
        capacity: Frames that fit.
        chunk_frames: Frames of a chunk of an image array.
        frame_shape: (C, E).
        labelled: Whether there is a label array.
        layout: Whether counts are kept as they are or as a list of hits.
        pack_all: `map`, or one that packs several chunks at once.

    Attributes:
        frames: Frames taken so far.
    """

    def __init__(
        self,
        *,
        capacity: int,
        chunk_frames: int,
        frame_shape: tuple[int, int],
        labelled: bool,
        layout: Layout,
        pack_all: PackAll = map,
    ) -> None:
        self.frames = 0
        self._frame_shape = frame_shape
        self._specs = array_specs(labelled, layout)
        # np.empty: pages of a shard that is sealed early are never touched.
        self._whole: dict[str, npt.NDArray[Any]] = {
            spec.name: np.empty(capacity + (spec.rows == "offsets"), spec.dtype)
            for spec in self._specs
            if not spec.chunked
        }
        self._chunked = {
            spec.name: ChunkedColumn(
                spec.dtype,
                spec.row_shape(frame_shape),
                HITS_PER_CHUNK if spec.rows == "hits" else min(chunk_frames, capacity),
                _codec(spec),
                pack_all,
            )
            for spec in self._specs
            if spec.chunked
        }
        if OFFSETS in self._whole:
            self._whole[OFFSETS][0] = 0

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The values so far of an array that is not chunked and has a row for each frame."""
        return self._whole[name][: self.frames]

    def append(
        self,
        block: FrameBlock,
        events: Events | None,
        *,
        version_N: npt.NDArray[np.uint32],
        phase_N: npt.NDArray[np.float32],
        weight_N: npt.NDArray[np.float32],
    ) -> None:
        """Take all frames of `block`; the caller has seen that they fit. `events` are its hits, in the event layout."""
        frames = slice(self.frames, self.frames + len(block))
        self._whole[PULSE_ID][frames] = block.pulse_id_N
        self._whole[FLAGS][frames] = block.flags_N
        self._whole[VERSION][frames] = version_N
        self._whole[PHASE][frames] = phase_N
        self._whole[WEIGHT][frames] = weight_N
        if events is None:
            self._chunked[COUNTS].append(block.counts_NCE)
        else:
            hits, offsets_N1 = events
            end_N = offsets_N1[1:] - offsets_N1[0] + self._whole[OFFSETS][self.frames]
            self._whole[OFFSETS][self.frames + 1 : self.frames + 1 + len(block)] = end_N
            self._chunked[HITS].append(hits[int(offsets_N1[0]) : int(offsets_N1[-1])])
        if block.label_NCE is not None and LABEL in self._chunked:
            self._chunked[LABEL].append(block.label_NCE)
        self.frames += len(block)

    def write(self, folder: GroupFolder) -> None:
        """Write every array; changes nothing here.

        Raises:
            OSError: the disk refuses.
        """
        for spec in self._specs:
            if spec.chunked:
                column = self._chunked[spec.name]
                metadata, pieces = column.metadata(spec.dimension_names), column.file()
            else:
                values = self._whole[spec.name][: self.frames + (spec.rows == "offsets")]
                codec = _codec(spec)
                metadata, pieces = (
                    array_metadata(
                        shape=values.shape,
                        dtype=values.dtype,
                        chunk_shape=values.shape,
                        codecs=codec.metadata(),
                        dimension_names=spec.dimension_names,
                    ),
                    [*codec.pack(values)],
                )
            folder.write_metadata(f"{spec.name}/{METADATA}", metadata)
            folder.write(spec.data_file(), pieces)

    def clear(self) -> None:
        """Give the memory back; nothing can be appended or written any more."""
        self._whole.clear()
        self._chunked.clear()


def _codec(spec: ArraySpec) -> Codec:
    return Codec(compressor=spec.compressor, item_bytes=np.dtype(spec.dtype).itemsize)
