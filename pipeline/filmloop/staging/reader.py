"""Reads the frames of a sealed shard, and never returns a number that was not written.

Zarr reads a missing file as zeros and an empty one too (zarr-python 3.1), so a read counts only if the file still has
the size in the manifest when it is over. Flipped bits are found by the CRC-32C of every chunk.

Shape suffixes: N frames, C channels, E energy bins, N1 = N + 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from filmloop.core.documents import ShardManifest
from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import read_shard
from filmloop.staging.events import Events, unpack_events
from filmloop.staging.groupfiles import GroupFiles
from filmloop.staging.layout import METADATA
from filmloop.staging.schema import (
    COUNTS,
    FLAGS,
    HITS,
    LABEL,
    OFFSETS,
    PHASE,
    PULSE_ID,
    SCHEMA_VERSION,
    VERSION,
    WEIGHT,
    ArraySpec,
    array_specs,
)

Check = Literal["none", "sizes", "hashes"]
_EVENTS_READ_FRAMES = 4096


class ShardReader:
    """One sealed shard, of either layout: frames come back as counts.

    Args:
        manifest_path: Its manifest; the group lies beside it.
        check: What to do before the first frame: `sizes` compares the size of every file and the hash of Zarr's own
            metadata (under a millisecond a file), `hashes` reads and hashes all, `none` trusts. Reading checks the CRC
            of what it reads in every case.

    Attributes:
        manifest: The manifest.
        manifest_path: Where it lies.
        specs: The arrays it has.

    Raises:
        DataError: the shard is damaged, or of a version that this reader does not know; names the shard and the file.
    """

    def __init__(self, manifest_path: Path, check: Check = "sizes") -> None:
        shard = read_shard(manifest_path)
        self.manifest: ShardManifest = shard.manifest
        self.manifest_path = manifest_path
        self._group_path = shard.group_path
        self._files = GroupFiles(shard)
        if check != "none":
            self._files.check_all(hashed=check == "hashes")
        self.specs = array_specs(self.manifest.labelled, self.manifest.layout, self._schema_version())
        self._arrays = {spec.name: self._open(spec) for spec in self.specs}

    @cached_property
    def manifest_digest(self) -> str:
        """Digest of the manifest; it covers every byte of the shard."""
        return self.manifest.digest()

    @property
    def frames(self) -> int:
        """Number of frames, N."""
        return self.manifest.frames

    @property
    def chunk_frames(self) -> int:
        """Frames that are decoded together: reads that begin and end at multiples of it decode nothing twice."""
        # A chunk of hits ends anywhere within a frame; so many frames share few enough of them.
        return int(self._arrays[COUNTS].chunks[0]) if self.manifest.layout == "dense" else _EVENTS_READ_FRAMES

    @cached_property
    def pulse_id_N(self) -> npt.NDArray[np.uint64]:
        """uint64 (N,)."""
        return self._read(PULSE_ID, 0, self.frames).astype(np.uint64, copy=False)

    @cached_property
    def flags_N(self) -> npt.NDArray[np.uint8]:
        """uint8 (N,), see `filmloop.core.types.SATURATED`."""
        return self._read(FLAGS, 0, self.frames).astype(np.uint8, copy=False)

    @cached_property
    def version_N(self) -> npt.NDArray[np.uint32]:
        """uint32 (N,), the registry version that inferred each frame; 0 is none."""
        return self._read(VERSION, 0, self.frames).astype(np.uint32, copy=False)

    @cached_property
    def phase_N(self) -> npt.NDArray[np.float32]:
        """float32 (N,), the sort key of each frame; NaN is none."""
        return self._read(PHASE, 0, self.frames).astype(np.float32, copy=False)

    @cached_property
    def weight_N(self) -> npt.NDArray[np.float32]:
        """float32 (N,), how many frames each stands for: `filmloop.staging.sampling`."""
        if WEIGHT not in self._arrays:  # version 1 knew no sampling
            return np.ones(self.frames, np.float32)
        return self._read(WEIGHT, 0, self.frames).astype(np.float32, copy=False)

    def counts(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Counts of the frames `start` to `stop`, uint8 (N, C, E).

        Raises:
            DataError: the bytes are damaged.
        """
        if self.manifest.layout == "dense":
            return self._read(COUNTS, start, stop).astype(np.uint8, copy=False)
        try:
            return unpack_events(*self.events(start, stop), self.manifest.frame_shape)
        except DataError as exc:
            raise self._files.damaged(self._data_file(HITS), f"does not fit its frames: {exc.message}") from exc

    def events(self, start: int = 0, stop: int | None = None) -> Events:
        """Hits of the frames `start` to `stop`: uint16 steps and uint64 (N + 1,) offsets (`filmloop.staging.events`).

        Raises:
            DataError: the bytes are damaged, or the shard holds counts.
        """
        if self.manifest.layout != "events":
            raise DataError(f"Shard {self.manifest.shard_id} holds counts, not hits.", ids=self._ids())
        first, last, _ = slice(start, stop).indices(self.frames)
        offsets_N1 = self._offsets_N1[first : max(first, last) + 1]
        hits = self._read(HITS, int(offsets_N1[0]), int(offsets_N1[-1])).astype(np.uint16, copy=False)
        return hits, offsets_N1 - offsets_N1[0]

    @cached_property
    def _offsets_N1(self) -> npt.NDArray[np.uint64]:
        offsets_N1 = self._read(OFFSETS, 0, self.frames + 1).astype(np.uint64, copy=False)
        if offsets_N1[0] != 0 or (offsets_N1[1:] < offsets_N1[:-1]).any():
            raise self._files.damaged(self._data_file(OFFSETS), "falls, or does not begin at 0")
        if offsets_N1[-1] != self._arrays[HITS].shape[0]:
            raise self._files.damaged(
                self._data_file(OFFSETS), f"does not end at the last of the hits, {offsets_N1[-1]}"
            )
        return offsets_N1

    def labels(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Labels of the frames `start` to `stop`, float32 (N, C, E); stored with a relative step of 5e-4.

        Raises:
            DataError: the bytes are damaged, or the shard has no labels.
        """
        if not self.manifest.labelled:
            raise DataError(
                f"Shard {self.manifest.shard_id} has no labels.",
                hint="Labelled training needs a source that brings them: [source] use_labels = true.",
                ids=self._ids(),
            )
        return self._read(LABEL, start, stop).astype(np.float32)

    def block(self, start: int, stop: int) -> FrameBlock:
        """The frames `start` to `stop` as they came.

        Raises:
            DataError: the bytes are damaged.
        """
        return FrameBlock(
            run_number=self.manifest.run_number,
            pulse_id_N=self.pulse_id_N[start:stop],
            counts_NCE=self.counts(start, stop),
            flags_N=self.flags_N[start:stop],
            label_NCE=self.labels(start, stop) if self.manifest.labelled else None,
        )

    def _ids(self) -> dict[str, str]:
        return {"shard_id": self.manifest.shard_id, "path": str(self.manifest_path)}

    @contextmanager
    def _decoding(self, name: str) -> Iterator[None]:
        """Zarr, its codecs and the disk each raise what they like for damaged bytes: all of it means the same."""
        try:
            yield
        except DataError:
            raise
        except Exception as exc:
            raise self._files.damaged(name, f"cannot be decoded: {exc}") from exc

    def _schema_version(self) -> int:
        """The version of the arrays; the manifest's own is another."""
        with self._decoding(METADATA):
            metadata = json.loads((self._group_path / METADATA).read_bytes())
            version = int(metadata["attributes"]["filmloop_schema_version"])
        if not 1 <= version <= SCHEMA_VERSION:
            raise DataError(
                f"Shard {self.manifest.shard_id} is of schema version {version}, this filmloop reads up to {SCHEMA_VERSION}.",
                hint="It was sealed by a newer filmloop: install that one here too.",
                ids=self._ids(),
            )
        return version

    def _data_file(self, name: str) -> str:
        return next(spec.data_file() for spec in self.specs if spec.name == name)

    def _open(self, spec: ArraySpec) -> zarr.Array:
        with self._decoding(f"{spec.name}/{METADATA}"):
            array = zarr.open_array(store=LocalStore(self._group_path / spec.name, read_only=True), mode="r")
        # How many hits there are, the offsets say.
        rows = {"frames": self.frames, "offsets": self.frames + 1, "hits": array.shape[0]}[spec.rows]
        shape = (rows, *spec.row_shape(self.manifest.frame_shape))
        if array.shape != shape or array.dtype != spec.dtype:
            raise self._files.damaged(
                f"{spec.name}/{METADATA}", f"tells of {array.dtype} {array.shape} instead of {spec.dtype} {shape}"
            )
        return array

    def _read(self, name: str, start: int, stop: int | None) -> npt.NDArray[np.generic]:
        data_file = self._data_file(name)
        with self._decoding(data_file):
            values = np.asarray(self._arrays[name][start:stop])
        self._files.check(data_file, hashed=False)
        return values
