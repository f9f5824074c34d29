"""Recorded frames in HDF5: the published schemas, recognised by what the file holds.

    CookieNetAE         X_test, Y_test (or X_train, Y_train, ...): counts int16 and targets float16, (N, C, E) each
    stacked             Ximg and Ypdf: the same of CookieSimSlim shots, stacked
    CookieSimSlim       one group a shot with Ximg and Ypdf, (C, E) each; shots in sorted order of their names. One without
                        Ximg has its hits counted: Xhits energies, Xaddresses and Xnedges begin and number of each channel's;
                        Ximg is their histogram (https://github.com/ryancoffee/CookieSimSlim)
    hit lists           hits: flat bins (K,) or (channel, energy) pairs (K, 2), with an attribute frame_shape (C, E);
                        offsets (N + 1,): first hit of each frame and the end

The pulse id of a frame is its row. Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from filmloop.adapters.sources.hits import dense_counts, flat_bins, ragged_counts
from filmloop.adapters.sources.recording import (
    Recording,
    checked_counts,
    checked_labels,
    locate,
    no_counts,
)
from filmloop.core.errors import DataError
from filmloop.core.log import Limited
from filmloop.core.types import BAD, SATURATED, FrameBlock

_log = logging.getLogger(__name__)

_SAMPLE_FRAMES = 16

_UNREADABLE = (
    OSError, ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip
"""What h5py raises of a file that is damaged, or holds something else than its names promise."""

_MOST_BINS = 1 << 20
"""Of a frame: hit lists name a shape without a byte for it, and a thousand such frames are a gigabyte."""

KNOWN = (
    "X_*/Y_* (CookieNetAE), Ximg/Ypdf (stacked), one group a shot with Ximg/Ypdf or Xhits (CookieSimSlim), hits/offsets"
)


def open_hdf5(path: Path) -> Recording:
    """The recording in the file at `path`.

    Raises:
        DataError: not HDF5, of an unknown schema, or its arrays do not fit together.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as exc:
        raise DataError(
            f"{path} is not a readable HDF5 file: {_why(exc, path)}.",
            hint="A recording is an HDF5 file or a folder of sealed shards.",
            ids={"path": str(path)},
        ) from exc
    try:
        return _recognise(file, path)
    except BaseException as exc:
        file.close()
        if isinstance(exc, _UNREADABLE):
            raise _unfit(path, f"what it holds cannot be read: {exc!r}") from exc
        raise


def _why(exc: OSError, path: Path) -> str:
    """What the system says, or what HDF5 means."""
    if exc.errno:
        return os.strerror(exc.errno).lower()
    if not path.stat().st_size:
        return "it is empty"
    if not h5py.is_hdf5(path):
        return "it is of another kind"
    return "it was cut off" if "truncated" in str(exc) else "it is damaged"


def _recognise(file: h5py.File, path: Path) -> Recording:
    names = sorted(file)
    arrays = [name for name in names if name.startswith("X_") and isinstance(file.get(name), h5py.Dataset)]
    if pairs := [(name, "Y_" + name[2:]) for name in arrays]:
        return StackedRecording(file, path, pairs)
    if isinstance(file.get("Ximg"), h5py.Dataset):
        return StackedRecording(file, path, [("Ximg", "Ypdf")])
    if isinstance(file.get("hits"), h5py.Dataset) and isinstance(file.get("offsets"), h5py.Dataset):
        return HitListRecording(file, path)
    first = file.get(names[0]) if names else None
    if isinstance(first, h5py.Group) and ("Ximg" in first or "Xhits" in first):
        return ShotRecording(file, path, names)
    found = [f"{name} {describe(file.get(name))}" for name in names[:8]] + (["..."] if len(names) > 8 else [])
    raise DataError(
        f"{path} has no schema that filmloop knows: it holds {', '.join(found) or 'nothing'}.",
        hint=f"Known are {KNOWN}. Rename the arrays, or add a schema beside these.",
        ids={"path": str(path)},
    )


def describe(node: Any) -> str:
    """What an object of the file is, in a few words."""
    if isinstance(node, h5py.Dataset):
        return f"({node.dtype} {node.shape})"
    if not isinstance(node, h5py.Group):
        return "(a link to nothing)" if node is None else f"({type(node).__name__})"
    return f"(group of {', '.join(sorted(node)[:6]) or 'nothing'})"


def _unfit(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}.", hint=f"Known are {KNOWN}.", ids={"path": str(path)})


def _rows(data: h5py.Dataset) -> int:
    """Length of the first axis; 0 where there is none."""
    return int(data.shape[0]) if data.shape else 0


class _Hdf5Recording:
    """One run; the row is the pulse id."""

    def __init__(self, file: h5py.File, path: Path, frames: int, frame_shape: tuple[int, int]) -> None:
        self._file, self._path = file, path
        self.frame_shape = frame_shape
        self.run_frames: tuple[int, ...] = (frames,)
        if math.prod(frame_shape) > _MOST_BINS:
            raise self._wrong(f"frames of {frame_shape} have more than {_MOST_BINS:,} bins")

    def position_after(self, run: int, pulse_id: int) -> int:
        return min(pulse_id + 1, self.run_frames[run])

    def close(self) -> None:
        self._file.close()

    def _wrong(self, what: str) -> DataError:
        return _unfit(self._path, what)


class StackedRecording(_Hdf5Recording):
    """Arrays of counts, each with its array of labels or without, one after another."""

    block_frames = 1024

    def __init__(self, file: h5py.File, path: Path, pairs: list[tuple[str, str]]) -> None:
        self._parts = [(file[counts], file.get(labels)) for counts, labels in pairs]
        shape: Any = self._parts[0][0].shape or ()
        super().__init__(file, path, sum(_rows(counts) for counts, _ in self._parts), shape[1:])
        self.has_labels = all(labels is not None for _, labels in self._parts)
        for counts, labels in self._parts:
            if counts.ndim != 3 or counts.shape[1:] != shape[1:] or counts.dtype.kind not in "uif":
                raise self._wrong(f"{counts.name} is {describe(counts)}, not numbers (N, C, E) like {shape}")
            if labels is not None and not _fits(labels, counts):
                raise self._wrong(f"{labels.name} is {describe(labels)}, but {counts.name} is {describe(counts)}")
            self._require_counts(counts)

    def read(self, run: int, start: int, stop: int, *, labels: bool) -> FrameBlock:
        """Up to the end of the array that holds `start`."""
        which, first = locate([len(counts) for counts, _ in self._parts], start)
        counts, label = self._parts[which]
        part = slice(start - first, min(stop - first, len(counts)))
        try:
            raw_NCE, raw_label_NCE = counts[part], label[part] if labels else None
        except _UNREADABLE as exc:
            raise self._wrong(f"{counts.name} cannot be read at frame {start}: {exc}") from exc
        return _block(run, start, raw_NCE, raw_label_NCE)

    def _require_counts(self, counts: h5py.Dataset) -> None:
        """Some frames of a recording may be damaged; if none of a sample holds counts, the array holds something else."""
        if not len(counts) or counts.dtype == np.uint8:
            return
        rows = np.unique(np.linspace(0, len(counts) - 1, _SAMPLE_FRAMES).astype(int)).tolist()
        try:
            raw_NCE = np.stack([counts[row] for row in rows])
        except _UNREADABLE:
            return  # `read` says where
        if no_counts(raw_NCE).all():
            raise self._wrong(
                f"none of {len(rows)} frames of {counts.name} holds counts, which are whole numbers from 0 up; "
                "are they rates or labels?"
            )


def _fits(labels: Any, counts: h5py.Dataset) -> bool:
    return isinstance(labels, h5py.Dataset) and labels.shape == counts.shape and labels.dtype.kind in "uif"


class ShotRecording(_Hdf5Recording):
    """One group a shot."""

    # Two small datasets a shot, about 0.2 ms: more at once would hold up a read.
    block_frames = 256

    def __init__(self, file: h5py.File, path: Path, names: list[str]) -> None:
        self._names, self._trouble = names, Limited(_log)
        shape = self._shape(file[names[0]])
        super().__init__(file, path, len(names), shape)
        if len(shape) != 2:
            raise self._wrong(f"/{names[0]} {describe(file[names[0]])} has no image (C, E)")
        self.has_labels = "Ypdf" in file[names[0]]

    def read(self, run: int, start: int, stop: int, *, labels: bool) -> FrameBlock:
        """Shots in sorted order of their names."""
        names = self._names[start:stop]
        images = [self._image(name, "Ximg") for name in names]
        targets = [self._image(name, "Ypdf") for name in names] if labels else []
        absent = [i for i in range(len(names)) if images[i] is None or (labels and targets[i] is None)]
        block = _block(run, start, self._stack(images), self._stack(targets) if labels else None)
        block.flags_N[absent] |= BAD
        return block

    def _shape(self, shot: h5py.Group) -> Any:
        if isinstance(image := shot.get("Ximg"), h5py.Dataset):
            return image.shape
        number, bins = shot.get("Xnedges"), shot.attrs.get("nenergies")
        known = isinstance(number, h5py.Dataset) and "Xaddresses" in shot and np.ndim(bins) == 0 and bins is not None
        return (_rows(number), int(bins)) if known else ()

    def _counted(self, shot: h5py.Group) -> npt.NDArray[Any]:
        """The hits of a shot without an image, counted."""
        begin_C, count_C = shot["Xaddresses"][()].astype(np.int64), shot["Xnedges"][()].astype(np.int64)
        energies = shot["Xhits"][()]
        if ((count_C < 0) | (count_C > len(energies))).any():
            raise ValueError(f"a channel of more hits than the {len(energies)} that there are")
        place_K = np.repeat(begin_C - np.cumsum(count_C) + count_C, count_C) + np.arange(count_C.sum())
        pairs = np.column_stack((np.repeat(np.arange(len(count_C)), count_C), energies[place_K]))
        counts_NCE, flags_N = dense_counts(
            flat_bins(pairs, self.frame_shape), count_C.sum(keepdims=True), self.frame_shape
        )
        if flags_N[0] & BAD:
            raise ValueError("a hit outside the frame")
        wide: npt.NDArray[Any] = counts_NCE[0].astype(np.uint16)
        if flags_N[0] & SATURATED:
            # Above 255 again, so that the block's check flags the frame.
            wide[wide == 255] = 256
        return wide

    def _image(self, shot: str, name: str) -> npt.NDArray[Any] | None:
        """None if the shot has none, or one that cannot be read or is of another shape: the others go on."""
        try:
            group = self._file[shot]
            hits = name == "Ximg" and name not in group and "Xhits" in group
            found: Any = self._counted(group) if hits else group[name]
            # Its shape before its values: a damaged one may be larger than memory.
            fits = found.shape == self.frame_shape and found.dtype.kind in "uif"
            image = np.asarray(found[()]) if fits else None
        except _UNREADABLE as exc:
            self._trouble.failed("%s: shot %s has no readable %s: %s", self._path, shot, name, exc)
            return None
        if image is None:
            what = f"{found.dtype} {found.shape}"
            self._trouble.failed("%s: %s of shot %s is %s, no image", self._path, name, shot, what)
        return image

    def _stack(self, images: list[npt.NDArray[Any] | None]) -> npt.NDArray[Any]:
        empty = np.zeros(self.frame_shape, np.uint8)
        return np.stack([empty if image is None else image for image in images])


class HitListRecording(_Hdf5Recording):
    """Hits of all frames one after another, and where those of each frame begin."""

    block_frames = 1024
    has_labels = False

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._hits, self._offsets = file["hits"], file["offsets"]
        found = np.atleast_1d(self._hits.attrs.get("frame_shape", ()))
        shape = [int(size) for size in found] if found.shape == (2,) and found.dtype.kind in "uif" else [0, 0]
        super().__init__(file, path, max(_rows(self._offsets) - 1, 0), (shape[0], shape[1]))
        if min(shape) < 1:
            raise self._wrong("hits has no attribute frame_shape with channels and energy bins")
        try:
            flat_bins(self._hits[:1], self.frame_shape)
            ragged_counts(self._offsets[()], len(self._hits))
        except _UNREADABLE as exc:
            raise self._wrong(str(exc)) from exc

    def read(self, run: int, start: int, stop: int, *, labels: bool) -> FrameBlock:
        """Frames with their hits counted."""
        try:
            offset_N = self._offsets[start : stop + 1].astype(np.int64)
            bin_K = flat_bins(self._hits[offset_N[0] : offset_N[-1]], self.frame_shape)
        except _UNREADABLE as exc:
            raise self._wrong(f"hits cannot be read at frame {start}: {exc}") from exc
        counts_NCE, flags_N = dense_counts(bin_K, np.diff(offset_N), self.frame_shape)
        return FrameBlock(
            run_number=run,
            pulse_id_N=np.arange(start, start + len(counts_NCE), dtype=np.uint64),
            counts_NCE=counts_NCE,
            flags_N=flags_N,
        )


def _block(run: int, start: int, raw_NCE: npt.NDArray[Any], raw_label_NCE: npt.NDArray[Any] | None) -> FrameBlock:
    """Rows from `start` on as they were recorded, checked."""
    counts_NCE, flags_N = checked_counts(raw_NCE)
    label_NCE = None
    if raw_label_NCE is not None:
        label_NCE, label_flags_N = checked_labels(raw_label_NCE)
        flags_N = flags_N | label_flags_N
    return FrameBlock(
        run_number=run,
        pulse_id_N=np.arange(start, start + len(counts_NCE), dtype=np.uint64),
        counts_NCE=counts_NCE,
        flags_N=flags_N,
        label_NCE=label_NCE,
    )
