"""Fills one shard in memory and seals it: whole, durable and checksummed, or not there at all.

One Zarr v3 group a shard, one file an array. `counts` is a single `sharding_indexed` file whose inner chunks are
packed by blosc (lz4, level 1, bitshuffle: the cheapest codec measured) with a CRC-32C after it; without the CRC half
of all flipped bits come back as wrong numbers without an error. Every chunk is written, zeros too, so that a missing
file is never a legitimate one.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from filmloop.config.schema import StagingSection
from filmloop.core.clock import utc_now
from filmloop.core.documents import Accounting, FileDigest, PulseRange, ShardManifest
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors, fsync_dir, fsync_file, fsync_tree
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard
from filmloop.staging.layout import ShardName, part_of
from filmloop.staging.schema import (
    COUNTS,
    FLAGS,
    LABEL,
    PHASE,
    PULSE_ID,
    SCHEMA_VERSION,
    VERSION,
    ArraySpec,
    array_specs,
)

Arrays = dict[str, npt.NDArray[np.generic]]


class ShardWriter:
    """One open shard. Nothing is on disk before `seal`.

    Args:
        stage: Folder of all shards.
        site: Name of the site, for the manifest.
        stream: Name of the stream.
        run_number: Every block must be of this run.
        seq: Number of the shard in its stream.
        frame_shape: (C, E).
        labelled: Whether every block brings `label_NCE`, to be stored as float16.
        section: How many frames a shard and a chunk hold.

    Raises:
        ConfigError: the names do not make a path.
        DataError: this shard is sealed already.
    """

    def __init__(
        self,
        stage: Path,
        *,
        site: str,
        stream: str,
        run_number: int,
        seq: int,
        frame_shape: tuple[int, int],
        labelled: bool,
        section: StagingSection,
    ) -> None:
        self._name = ShardName(stream=stream, run_number=run_number, seq=seq)
        self._site, self._frame_shape, self._labelled = site, frame_shape, labelled
        self._group_path, self._manifest_path = self._name.group_path(stage), self._name.manifest_path(stage)
        self._frames_per_chunk, self._capacity = section.frames_per_chunk, section.frames_per_shard
        self._specs = array_specs(labelled)
        # np.empty: pages of a shard that is sealed early are never touched.
        self._arrays: Arrays = {
            spec.name: np.empty(spec.shape(self._capacity, frame_shape), spec.dtype) for spec in self._specs
        }
        self._frames = 0
        self._opened_s, self._opened_utc = 0.0, ""
        self._require_unsealed()

    @property
    def shard_id(self) -> str:
        """`<stream>/run000001/00000012`."""
        return self._name.shard_id

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._frames

    @property
    def full(self) -> bool:
        """Whether there is no room for another frame."""
        return self._frames == self._capacity

    @property
    def age_s(self) -> float:
        """Seconds since the first frame; 0 without one."""
        return time.monotonic() - self._opened_s if self._frames else 0.0

    def append(self, block: FrameBlock, *, version_N: npt.NDArray[np.uint32], phase_N: npt.NDArray[np.float32]) -> int:
        """Take as many frames of `block` as there is room for, from its beginning; returns how many.

        Args:
            block: Frames of this shard's run and shape.
            version_N: uint32 (N,), the registry version that inferred each frame; 0 is none.
            phase_N: float32 (N,), the sort key of each frame; NaN is none.

        Raises:
            DataError: another run or shape, labels missing or not finite; nothing was taken.
        """
        taken = min(len(block), self._capacity - self._frames)
        if taken == 0:
            return 0
        block = block[:taken]
        self._check(block)
        columns: dict[str, Any] = {
            COUNTS: block.counts_NCE,
            PULSE_ID: block.pulse_id_N,
            FLAGS: block.flags_N,
            VERSION: version_N[:taken],
            PHASE: phase_N[:taken],
            LABEL: block.label_NCE,
        }
        for spec in self._specs:
            self._arrays[spec.name][self._frames : self._frames + taken] = columns[spec.name]
        if self._frames == 0:
            self._opened_s, self._opened_utc = time.monotonic(), utc_now()
        self._frames += taken
        return taken

    def seal(self, *, accounting: Accounting, dropped: Sequence[PulseRange] = ()) -> SealedShard:
        """Write the shard, make it durable and publish it.

        Args:
            accounting: What became of every frame of the stream up to the last one in here.
            dropped: Frames that would have been in here, and why they are not.

        Raises:
            TransientError: the disk refuses. The frames are still here: free space and call again.
            DataError: there is no frame to seal, or the shard was sealed already.
        """
        if self._frames == 0:
            raise DataError(f"Shard {self.shard_id} has no frame to seal.", ids={"shard_id": self.shard_id})
        self._require_unsealed()
        part = part_of(self._group_path)
        with disk_errors(self._group_path):
            try:
                _make_folder(part.parent)
                shutil.rmtree(part, ignore_errors=True)
                self._write_group(part)
                fsync_tree(part)
                manifest = self._manifest(part, accounting, dropped)
                self._publish(part, manifest)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                with suppress(OSError):
                    part_of(self._manifest_path).unlink(missing_ok=True)
                raise
        self._arrays.clear()
        return SealedShard(manifest=manifest, manifest_path=self._manifest_path, group_path=self._group_path)

    def abort(self) -> None:
        """Forget the frames; nothing of them is or was on disk. The writer takes no more."""
        self._frames = 0
        self._arrays.clear()

    def _require_unsealed(self) -> None:
        if self._manifest_path.exists():
            raise DataError(
                f"Shard {self.shard_id} is sealed already; a sealed shard never changes.",
                hint="Two edges on one state folder? `filmloop status` shows the one that runs.",
                ids={"shard_id": self.shard_id, "path": str(self._manifest_path)},
            )

    def _check(self, block: FrameBlock) -> None:
        ids = {"shard_id": self.shard_id}
        if block.run_number != self._name.run_number:
            raise DataError(f"A frame of run {block.run_number} cannot go into shard {self.shard_id}.", ids=ids)
        if block.counts_NCE.shape[1:] != self._frame_shape or block.counts_NCE.dtype != np.uint8:
            raise DataError(
                f"Frames are {block.counts_NCE.dtype} {block.counts_NCE.shape[1:]}, "
                f"shard {self.shard_id} holds uint8 {self._frame_shape}.",
                hint="Set channels and energy_bins in [frame] of the site file.",
                ids=ids,
            )
        if not self._labelled:
            return
        if block.label_NCE is None or block.label_NCE.shape != block.counts_NCE.shape:
            raise DataError(f"Shard {self.shard_id} is labelled, but a block brings no label for each count.", ids=ids)
        # `not <=` is also true for NaN; above this float16 would turn a label into infinity.
        if not np.abs(block.label_NCE).max() <= np.finfo(np.float16).max:
            raise DataError(f"A label for shard {self.shard_id} is not a finite float16 number.", ids=ids)

    def _write_group(self, path: Path) -> None:
        group = zarr.create_group(
            store=LocalStore(path),
            zarr_format=3,
            attributes={
                "filmloop_schema_version": SCHEMA_VERSION,
                "shard_id": self.shard_id,
                "site": self._site,
                "run_number": self._name.run_number,
            },
        )
        for spec in self._specs:
            self._write_array(group, spec)

    def _write_array(self, group: zarr.Group, spec: ArraySpec) -> None:
        frames, shape = self._frames, spec.shape(self._frames, self._frame_shape)
        chunk_frames = min(self._frames_per_chunk, frames) if spec.image else frames
        shard_frames = -(-frames // chunk_frames) * chunk_frames
        array = group.create_array(
            spec.name,
            shape=shape,
            dtype=spec.dtype,
            chunks=(chunk_frames, *shape[1:]),
            shards=(shard_frames, *shape[1:]) if spec.image else None,
            filters=None,
            compressors=_codecs(spec),
            fill_value=0,
            dimension_names=("frame", "channel", "energy")[: len(shape)],
            config={"write_empty_chunks": True},
        )
        array[:] = self._arrays[spec.name][:frames]

    def _manifest(self, part: Path, accounting: Accounting, dropped: Sequence[PulseRange]) -> ShardManifest:
        pulse_id_N = self._arrays[PULSE_ID][: self._frames]
        versions, frames = np.unique(self._arrays[VERSION][: self._frames], return_counts=True)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        digests = (FileDigest.of(path, part) for path in files)
        return ShardManifest(
            shard_id=self.shard_id,
            site=self._site,
            stream=self._name.stream,
            run_number=self._name.run_number,
            seq=self._name.seq,
            group=self._group_path.name,
            frames=self._frames,
            frame_shape=self._frame_shape,
            labelled=self._labelled,
            first_pulse_id=int(pulse_id_N.min()),
            last_pulse_id=int(pulse_id_N.max()),
            dropped=tuple(dropped),
            opened_utc=self._opened_utc,
            sealed_utc=utc_now(),
            model_versions={str(version): int(count) for version, count in zip(versions, frames, strict=True)},
            accounting=accounting,
            files=tuple(file.model_copy(update={"path": f"{self._group_path.name}/{file.path}"}) for file in digests),
        )

    def _publish(self, part: Path, manifest: ShardManifest) -> None:
        """Rename the group, then the manifest. All bytes are durable before, so recovery can finish a broken pair."""
        manifest_part = part_of(self._manifest_path)
        manifest_part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        fsync_file(manifest_part)
        fsync_dir(part.parent)
        shutil.rmtree(self._group_path, ignore_errors=True)
        os.replace(part, self._group_path)
        os.replace(manifest_part, self._manifest_path)
        fsync_dir(part.parent)


def _make_folder(folder: Path) -> None:
    """Make `folder` and whatever lies above it, and their names durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_dir(folder.parent)


def _codecs(spec: ArraySpec) -> list[BloscCodec | Crc32cCodec]:
    item_bytes = np.dtype(spec.dtype).itemsize
    if spec.compressor is None:
        return [Crc32cCodec()]
    shuffle = "bitshuffle" if item_bytes == 1 else "shuffle"
    return [BloscCodec(cname=spec.compressor, clevel=1, shuffle=shuffle, typesize=item_bytes), Crc32cCodec()]
