"""The ring between the stages: frames, what became of them, and how far every stage is, in one block of shared memory.

    source writes      counts and what came with them, then moves `head`
    inference writes   version, sort key, surprise of the frames up to `head`, then moves `done`; of its two seats one serves
    staging reads      all of that up to `done`, then moves `taken`: these places are free again

Cursors count frames and never turn back; frame number n lies at n modulo the length. Nothing is pickled and nothing
is copied between stages, and a stage that is killed has moved no cursor over half a frame.
Shape suffixes: F places of the ring, N frames of a span, C channels, E energy bins.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import SiteConfig
from filmloop.core.documents import PulseRange
from filmloop.edge.bell import Bell
from filmloop.edge.cells import Board, Cell

ROLES = ("source", "inference", "staging")
SEATS = ("inference", "inference_2")
"""Of inference there are two in processes of their own: one serves, the other prepares the next version and then relieves it."""
STANDBY = "standby"
"""What the seat does that does not serve."""
PLACES = ("source", *SEATS, "staging")
"""Whoever sits at the ring, each with a heartbeat, a page of news and a bell; an edge in threads has one seat of inference."""

CAME_WITH = ("frames_in", "missing", "out_of_order", "duplicate", "late", "bad_frame", "overflow")
"""Counted by the source; beside each frame they say what they were when it came, itself included."""

SOURCE_FIELDS = ("head", "notes", "run_number", "last_pulse_id", "ended", "drained", *CAME_WITH)
INFERENCE_FIELDS = ("done", "inferred", "no_model", "stopped", "ended", "seat")
NOT_INFERRED = 2**32 - 1
"""In the place of a version: a stop was overdue, these frames go no further."""
UNSTAGED = ("queue_full", "disk_full", "disk_error", "bad_frame", "stopped", "not_sampled", "staging_killed")
STAGING_FIELDS = (
    "taken", "notes", "inferred", "no_model", "not_inferred", "appended", "sealed", "open_frames", "open_run", "open_first_id",
    "open_last_id", "ended", *UNSTAGED,
)  # fmt: skip
CONTROL_FIELDS = ("stop", "hurry")

NOTES = 4096
NOTE_FIELDS = ("at", "run_number", "first_pulse_id", "last_pulse_id", "frames", "reason")
"""Frames that the source let pass: `at` is the cursor of the frame that came next, `reason` indexes CAME_WITH. Run and pulse
ids are the bits of a uint64: damaged ones are told too."""

_BOARD_BYTES, _SPEC_BYTES = 32768, 1 << 20
"""What a stage says is bounded by us; a site's resolved configuration is not: a drift schedule may be long."""

_ALIGN = 4096
_A_BATCH, _MOST_FRAMES = 256, 1 << 17
"""Small frames need no longer ring: at a stop it has to be emptied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingLayout:
    """What a ring holds; equal layouts are equal memory.

    Attributes:
        frames: Places, F.
        frame_shape: (C, E).
        labelled: Whether frames come with labels.
    """

    frames: int
    frame_shape: tuple[int, int]
    labelled: bool

    @classmethod
    def of(cls, config: SiteConfig, *, labelled: bool) -> RingLayout:
        """As many frames as fit into the site's `ring_mb`, whole chunks of a shard where that is possible."""
        channels, bins = config.frame_shape
        frames = int(config.edge.ring_mb * 1e6) // (channels * bins * (5 if labelled else 1))
        frames = min(frames, _MOST_FRAMES)
        chunk = config.staging.frames_per_chunk
        if frames >= 4 * chunk:
            frames -= frames % chunk
        return cls(
            frames=max(frames, 2 * (config.edge.batch_frames or _A_BATCH)),
            frame_shape=config.frame_shape,
            labelled=labelled,
        )

    @property
    def size_bytes(self) -> int:
        """Memory that such a ring takes."""
        return _size(self)

    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of everything in it, by name, in order."""
        image = (self.frames, *self.frame_shape)
        columns: dict[str, tuple[tuple[int, ...], str]] = {
            "counts": (image, "u1"), "pulse_id": ((self.frames,), "u8"), "run_number": ((self.frames,), "i8"),
            "flags": ((self.frames,), "u1"), "arrived_ns": ((self.frames,), "i8"),
            "came_with": ((self.frames, len(CAME_WITH)), "i8"), "version": ((self.frames,), "u4"),
            "phase": ((self.frames,), "f4"), "surprise": ((self.frames,), "f4"),
            "notes": ((NOTES, len(NOTE_FIELDS)), "i8"), "beats": ((len(PLACES),), "i8"), "ready": ((len(SEATS),), "i8"),
        }  # fmt: skip
        if self.labelled:
            columns["label"] = (image, "f4")
        for name, fields in _CELLS.items():
            columns[f"cell_{name}"] = ((Cell.words(fields),), "i8")
        for name in (*PLACES, "spec"):
            columns[f"board_{name}"] = ((Board.bytes_for(_SPEC_BYTES if name == "spec" else _BOARD_BYTES),), "u1")
        return columns


_CELLS = {"source": SOURCE_FIELDS, "inference": INFERENCE_FIELDS, "staging": STAGING_FIELDS, "control": CONTROL_FIELDS}


class FrameRing:
    """One mapping of the ring's memory.

    Args:
        layout: What it holds.
        fd: A descriptor of that memory; the mapping outlives it.
        bells: One a place: rung when there is something to do there.

    Attributes:
        counts_FCE: uint8 (F, C, E); the other columns are named alike.
        came_with_FK: int64 (F, len(CAME_WITH)).
        beats: int64 (len(PLACES),), when each place last showed life: monotonic ns, 0 before its first beat.
        ready: int64 (len(SEATS),), the version that a seat is ready to serve with; 0 if it is not.
        source, inference, staging, control: Cells.
        boards: A page of text for each place.
        spec: What the stages are to do, in words; written before the first one starts.
    """

    def __init__(self, layout: RingLayout, fd: int, bells: dict[str, Bell]) -> None:
        self.layout, self.fd, self.bells, self.frames = layout, fd, bells, layout.frames
        self._memory = mmap.mmap(fd, _size(layout))
        arrays = dict(_map(layout, self._memory))
        self.counts_FCE: npt.NDArray[np.uint8] = arrays["counts"]
        self.pulse_id_F: npt.NDArray[np.uint64] = arrays["pulse_id"]
        self.run_number_F: npt.NDArray[np.int64] = arrays["run_number"]
        self.flags_F: npt.NDArray[np.uint8] = arrays["flags"]
        self.arrived_ns_F: npt.NDArray[np.int64] = arrays["arrived_ns"]
        self.came_with_FK: npt.NDArray[np.int64] = arrays["came_with"]
        self.version_F: npt.NDArray[np.uint32] = arrays["version"]
        self.phase_F: npt.NDArray[np.float32] = arrays["phase"]
        self.surprise_F: npt.NDArray[np.float32] = arrays["surprise"]
        self.label_FCE: npt.NDArray[np.float32] | None = arrays.get("label")
        self.notes: npt.NDArray[np.int64] = arrays["notes"]
        self.beats: npt.NDArray[np.int64] = arrays["beats"]
        self.ready: npt.NDArray[np.int64] = arrays["ready"]
        cells = {name: Cell(arrays[f"cell_{name}"], fields) for name, fields in _CELLS.items()}
        self.source, self.inference, self.staging, self.control = (cells[name] for name in _CELLS)
        self.boards = {place: Board(arrays[f"board_{place}"]) for place in PLACES}
        self.spec = Board(arrays["board_spec"])

    @classmethod
    def new(cls, layout: RingLayout) -> FrameRing:
        """A ring of zeros in memory without a name: it is gone with the last process that maps it, however that ends."""
        fd = os.memfd_create("filmloop-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, _size(layout))
        return cls(layout, fd, {place: Bell.new() for place in PLACES})

    def roles(self) -> dict[str, str]:
        """What is done at each place just now: one of `ROLES`, or `STANDBY`; all at one moment."""
        serving = self.serving
        return {
            place: place if place not in SEATS else "inference" if place == serving else STANDBY for place in PLACES
        }

    def role(self, place: str) -> str:
        """What is done there just now."""
        return self.roles()[place]

    @property
    def serving(self) -> str:
        """The place of the inference that serves."""
        return SEATS[self.inference.get("seat")]

    def span(self, begin: int, end: int) -> slice:
        """The places from cursor `begin` on, to `end` or to the end of the ring."""
        first = begin % self.frames
        return slice(first, first + min(end - begin, self.frames - first))

    def write_note(self, number: int, at: int, passed: PulseRange) -> None:
        """Note number `number` of the source: frames let pass before the one at cursor `at`."""
        numbers = [(passed.run_number or 0) % 2**64, passed.first_pulse_id, passed.last_pulse_id]
        bits = np.array(numbers, np.uint64).view(np.int64).tolist()
        reason = CAME_WITH.index(passed.reason)
        self.notes[number % NOTES] = [at, *bits, passed.frames, reason]

    def read_note(self, number: int) -> tuple[int, PulseRange]:
        """Cursor and frames of a note."""
        at, run_number, first_id, last_id, frames, reason = self.notes[number % NOTES].tolist()
        passed = PulseRange(
            first_pulse_id=first_id % 2**64,
            last_pulse_id=last_id % 2**64,
            frames=frames,
            reason=CAME_WITH[reason],
            run_number=run_number % 2**64,
        )
        return at, passed

    def close(self) -> None:
        """Close descriptors; the memory goes when the last array over it does."""
        for bell in self.bells.values():
            bell.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _offsets(layout: RingLayout) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any], int]]:
    offset = 0
    for name, (shape, kind) in layout.arrays().items():
        dtype = np.dtype(kind)
        yield name, shape, dtype, offset
        offset += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGN) * _ALIGN


def _map(layout: RingLayout, memory: mmap.mmap) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, shape, dtype, offset in _offsets(layout):
        yield name, np.ndarray(shape, dtype, memory, offset)


def _size(layout: RingLayout) -> int:
    *_, (_, shape, dtype, offset) = _offsets(layout)
    return offset + -(-int(np.prod(shape)) * dtype.itemsize // _ALIGN) * _ALIGN
