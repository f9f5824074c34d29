"""Our own sealed shards as a recording: any folder below which the shards of one stream lie.

Pulse ids are the stored ones; the stored runs follow each other in order.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np

from filmloop.adapters.sources.recording import locate
from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard, read_shard
from filmloop.staging.layout import MANIFEST_SUFFIX
from filmloop.staging.reader import ShardReader


class ShardRecording:
    """Sealed shards of one stream.

    Raises:
        DataError: there are none, they are of several streams or shapes, or one is damaged.
    """

    block_frames = 1024

    def __init__(self, folder: Path) -> None:
        found = [read_shard(path) for path in sorted(folder.rglob(f"*{MANIFEST_SUFFIX}"))]
        shards = sorted(found, key=lambda shard: (shard.manifest.run_number, shard.manifest.seq))
        self._require_one(folder, "streams", {shard.manifest.stream for shard in shards})
        self._require_one(folder, "frame shapes", {str(shard.manifest.frame_shape) for shard in shards})
        self.frame_shape = shards[0].manifest.frame_shape
        self.has_labels = all(shard.manifest.labelled for shard in shards)
        self._runs = [list(run) for _, run in groupby(shards, key=lambda shard: shard.manifest.run_number)]
        self.run_frames = tuple(sum(shard.manifest.frames for shard in run) for run in self._runs)
        self._reader: ShardReader | None = None

    def read(self, run: int, start: int, stop: int, *, labels: bool) -> FrameBlock:
        """Up to the end of the shard that holds `start`."""
        which, first = locate([shard.manifest.frames for shard in self._runs[run]], start)
        shard = self._runs[run][which]
        reader = self._open(shard)
        part = slice(start - first, min(stop - first, shard.manifest.frames))
        return FrameBlock(
            run_number=run,
            pulse_id_N=reader.pulse_id_N[part],
            counts_NCE=reader.counts(part.start, part.stop),
            flags_N=reader.flags_N[part],
            label_NCE=reader.labels(part.start, part.stop) if labels else None,
        )

    def position_after(self, run: int, pulse_id: int) -> int:
        """Pulse ids grow along a run: shards that end before it count whole."""
        position = 0
        for shard in self._runs[run]:
            if pulse_id < shard.manifest.last_pulse_id:
                return position + int(np.count_nonzero(self._open(shard).pulse_id_N <= pulse_id))
            position += shard.manifest.frames
        return position

    def close(self) -> None:
        """Forget the open shard."""
        self._reader = None

    def _open(self, shard: SealedShard) -> ShardReader:
        if self._reader is None or self._reader.manifest_path != shard.manifest_path:
            self._reader = ShardReader(shard.manifest_path)
        return self._reader

    def _require_one(self, folder: Path, what: str, found: set[str]) -> None:
        if len(found) != 1:
            raise DataError(
                f"{folder} holds shards of {len(found)} {what}: {', '.join(sorted(found))}."
                if found
                else f"{folder} holds no sealed shard.",
                hint="Name a folder with the sealed shards of one stream, e.g. <home>/stage/<stream>.",
                ids={"path": str(folder)},
            )
