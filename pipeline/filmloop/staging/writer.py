"""Fills one shard in memory and seals it: whole, durable and checksummed, or not there at all.

One Zarr v3 group a shard, one file an array. `counts` (or `hits`) is a single `sharding_indexed` file whose inner
chunks are packed while frames come, by blosc (lz4, level 1, bitshuffle: the cheapest codec measured). Only packed
chunks are kept, some 400 bytes a frame of 16x128, so a disk that refuses loses nothing.

Shape suffixes: N frames, C channels, E energy bins, H hits of all frames, N1 = N + 1.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import StagingSection
from filmloop.core.clock import utc_now
from filmloop.core.documents import Accounting, FileDigest, PulseRange, ShardManifest
from filmloop.core.errors import DataError
from filmloop.core.fsio import disk_errors, fsync_dir, fsync_file, fsync_tree
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard
from filmloop.staging.columns import FrameColumns
from filmloop.staging.events import Events, check_events, pack_events, require_indexable
from filmloop.staging.layout import METADATA, ShardName, part_of
from filmloop.staging.schema import PULSE_ID, SCHEMA_VERSION, VERSION
from filmloop.staging.zarrfile import GroupFolder, PackAll, group_metadata


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
        section: How many frames a shard and a chunk hold, and whether counts are kept dense or as a list of hits.
        pack_all: `map`, or one that packs several chunks at once, as a pool of threads does.

    Attributes:
        input_gain: For the manifest: what was corrected before the network, empty without; may be set until `seal`.
        frames_dark: For the manifest: frames that were taken while there was no beam; may be set until `seal`.

    Raises:
        ConfigError: the names do not make a path, or a frame has too many bins for a list of hits.
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
        pack_all: PackAll = map,
    ) -> None:
        self._name = ShardName(stream=stream, run_number=run_number, seq=seq)
        self._site, self._frame_shape, self._labelled = site, frame_shape, labelled
        self._group_path, self._manifest_path = self._name.group_path(stage), self._name.manifest_path(stage)
        self._capacity, self._layout = section.frames_per_shard, section.layout
        if self._layout == "events":
            require_indexable(frame_shape)
        self._columns = FrameColumns(
            capacity=self._capacity,
            chunk_frames=section.frames_per_chunk,
            frame_shape=frame_shape,
            labelled=labelled,
            layout=self._layout,
            pack_all=pack_all,
        )
        self.input_gain: tuple[float, ...] = ()
        self.frames_dark = 0
        self._opened_s, self._opened_utc = 0.0, ""

    @property
    def shard_id(self) -> str:
        """`<stream>/run000001/00000012`."""
        return self._name.shard_id

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return self._columns.frames

    @property
    def full(self) -> bool:
        """Whether there is no room for another frame."""
        return self.frames == self._capacity

    @property
    def age_s(self) -> float:
        """Seconds since the first frame; 0 without one."""
        return time.monotonic() - self._opened_s if self.frames else 0.0

    def append(
        self,
        block: FrameBlock,
        *,
        version_N: npt.NDArray[np.uint32],
        phase_N: npt.NDArray[np.float32],
        weight_N: npt.NDArray[np.float32] | None = None,
        events: Events | None = None,
    ) -> int:
        """Take as many frames of `block` as there is room for, from its beginning; returns how many.

        Packs a chunk whenever one is full, without the interpreter's lock; never touches the disk. The block may be
        reused afterwards. Blocks of whole chunks are packed from where they lie, shorter ones are copied once.

        Args:
            block: Frames of this shard's run and shape.
            version_N: uint32 (N,), the registry version that inferred each frame; 0 is none.
            phase_N: float32 (N,), the sort key of each frame; NaN is none.
            weight_N: float32 (N,), how many frames each stands for (`filmloop.staging.sampling`); None is 1 each.
            events: uint16 hits and uint64 (N + 1,) offsets of the same frames, where the source has them; used by the
                event layout only, which then does not look at the block's counts.

        Raises:
            DataError: another run or shape, columns of another length, labels missing or not finite, weights that are
                not positive, or hits that are no event list; nothing was taken.
        """
        taken = min(len(block), self._capacity - self.frames)
        if taken == 0:
            return 0
        block, version_N, phase_N = block[:taken], version_N[:taken], phase_N[:taken]
        weight_N = np.ones(taken, np.float32) if weight_N is None else weight_N[:taken]
        self._check(block, version_N, phase_N, weight_N)
        if self._layout == "dense":
            events = None
        elif events is None:
            events = pack_events(block.counts_NCE)
        else:
            events = events[0], events[1][: taken + 1]
            self._check_events(events, taken)
        if self.frames == 0:
            self._opened_s, self._opened_utc = time.monotonic(), utc_now()
        self._columns.append(block, events, version_N=version_N, phase_N=phase_N, weight_N=weight_N)
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
        if self.frames == 0:
            raise DataError(f"Shard {self.shard_id} has no frame to seal.", ids={"shard_id": self.shard_id})
        part = part_of(self._group_path)
        with disk_errors(self._group_path):
            self._require_unsealed()
            try:
                _make_folder(part.parent)
                shutil.rmtree(part, ignore_errors=True)
                folder = GroupFolder(part)
                self._write_group(folder)
                # After the last write: the first fsync commits the names of all.
                fsync_tree(part)
                manifest = self._manifest(folder.files, accounting, dropped)
                self._publish(part, manifest)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                with suppress(OSError):
                    part_of(self._manifest_path).unlink(missing_ok=True)
                raise
        self._close()
        return SealedShard(manifest=manifest, manifest_path=self._manifest_path, group_path=self._group_path)

    def abort(self) -> None:
        """Forget the frames; nothing of them is or was on disk. The writer takes no more."""
        self._columns.frames = 0
        self._close()

    def _close(self) -> None:
        self._capacity = self.frames
        self._columns.clear()

    def _require_unsealed(self) -> None:
        if self._manifest_path.exists():
            raise DataError(
                f"Shard {self.shard_id} is sealed already; a sealed shard never changes.",
                hint="Two edges on one state folder? `filmloop status` shows the one that runs.",
                ids={"shard_id": self.shard_id, "path": str(self._manifest_path)},
            )

    def _check(
        self,
        block: FrameBlock,
        version_N: npt.NDArray[np.uint32],
        phase_N: npt.NDArray[np.float32],
        weight_N: npt.NDArray[np.float32],
    ) -> None:
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
        # A column of one number would silently be repeated.
        if not len(version_N) == len(phase_N) == len(weight_N) == len(block):
            raise DataError(f"Frames for shard {self.shard_id} need a version, a phase and a weight each.", ids=ids)
        # `not >` is also true for NaN.
        if not (weight_N > 0).all():
            raise DataError(f"A weight for shard {self.shard_id} is not a positive number.", ids=ids)
        if not self._labelled:
            return
        if block.label_NCE is None or block.label_NCE.shape != block.counts_NCE.shape:
            raise DataError(f"Shard {self.shard_id} is labelled, but a block brings no label for each count.", ids=ids)
        if not storable(block.label_NCE).all():
            raise DataError(f"A label for shard {self.shard_id} is not a finite float16 number.", ids=ids)

    def _check_events(self, events: Events, frames: int) -> None:
        if len(events[1]) != frames + 1:
            raise DataError(
                f"An event list for shard {self.shard_id} has {len(events[1])} offsets for {frames} frames.",
                ids={"shard_id": self.shard_id},
            )
        check_events(*events, self._frame_shape)

    def _write_group(self, folder: GroupFolder) -> None:
        attributes = {
            "filmloop_schema_version": SCHEMA_VERSION,
            "shard_id": self.shard_id,
            "site": self._site,
            "run_number": self._name.run_number,
        }
        folder.write_metadata(METADATA, group_metadata(attributes))
        self._columns.write(folder)

    def _manifest(
        self, files: list[FileDigest], accounting: Accounting, dropped: Sequence[PulseRange]
    ) -> ShardManifest:
        pulse_id_N = self._columns[PULSE_ID]
        versions, frames = np.unique(self._columns[VERSION], return_counts=True)
        return ShardManifest(
            shard_id=self.shard_id,
            site=self._site,
            stream=self._name.stream,
            run_number=self._name.run_number,
            seq=self._name.seq,
            group=self._group_path.name,
            frames=self.frames,
            frame_shape=self._frame_shape,
            labelled=self._labelled,
            layout=self._layout,
            first_pulse_id=int(pulse_id_N.min()),
            last_pulse_id=int(pulse_id_N.max()),
            dropped=tuple(dropped),
            opened_utc=self._opened_utc,
            sealed_utc=utc_now(),
            model_versions={str(version): int(count) for version, count in zip(versions, frames, strict=True)},
            accounting=accounting,
            input_gain=self.input_gain,
            frames_dark=self.frames_dark,
            files=tuple(
                file.model_copy(update={"path": f"{self._group_path.name}/{file.path}"})
                for file in sorted(files, key=lambda file: file.path)
            ),
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


def storable(label_NCE: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which frames have labels that a shard can hold, bool (N,): float16 would turn larger ones into infinity."""
    # `<=` is false for NaN, too.
    return np.asarray(np.abs(label_NCE).max(axis=(1, 2)) <= np.finfo(np.float16).max)


def _make_folder(folder: Path) -> None:
    """Make `folder` and whatever lies above it, and their names durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_dir(folder.parent)
