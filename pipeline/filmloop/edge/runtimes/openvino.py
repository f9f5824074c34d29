"""OpenVINO on the CPU: the fastest here, in bfloat16 or int8 where the CPU has matrix units for them.

Of the graphs (`openvino_graphs`) the smallest that fits is run, and what a batch lacks is filled up with empty frames.

Shape suffixes: N frames, C channels, E energy bins, K moments.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import openvino as ov

from filmloop.edge.runtimes.openvino_graphs import SIZES, Graphs, Kind, Net, precision
from filmloop.edge.runtimes.pending import Counts, Floats, Later, in_batches, phase_of
from filmloop.edge.runtimes.quantise import hits_of
from filmloop.ports.runtime import Inferred
from filmloop_models.spec import SortKey

_SAMPLE_FRAMES = 64
"""Frames of one `infer`: it is for samples and golden pairs."""
_MOST_LANES = 8
_MANY_FRAMES = 4096
"""Of a backlog taken at once, in parts: Python's share of the time is then down to 1 %."""
_FEW = 4
"""Up to every fourth frame of a batch is inferred twice if the integers' ranges are not for it; if more are, all are once."""
_KEPT_BATCHES = 2
"""A result is the caller's until so many later batches are finished."""


@dataclass(eq=False, slots=True)
class _Slot:
    """Memory for what the graphs make of one batch; as much as was ever wanted, used again and again.

    Attributes:
        row_shapes: Of each output, the shape of one row.
        arrays: What there is.
    """

    row_shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, Floats] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Floats:
        return self.arrays[name]

    def reserve(self, name: str, rows: int) -> None:
        """See that there are so many rows of an output; what was handed out before stays as it is."""
        if name not in self.arrays or len(self.arrays[name]) < rows:
            self.arrays[name] = np.empty((rows, *self.row_shapes[name]), np.float32)


class OpenVinoRuntime:
    """A bundle's `model.onnx`, several batches at once.

    Args:
        path: The file.
        name: `openvino-f32`, `openvino-bf16` or `openvino-int8`.
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames of one `start` while the edge keeps up; a backlog comes in several of these at once.
        sort_key: Of the model.
        threads: CPU threads: as many streams of one thread each.
        calibration_NCE: Counts by which `openvino-int8` finds its ranges. Frames that are brighter than those ranges are
            for, and counts scaled to float32, which are no whole numbers, run without integers.

    Attributes:
        lanes: As many batches as keep every stream busy while another is prepared.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        version: str,
        frame_shape: tuple[int, int],
        batch_frames: int,
        sort_key: SortKey | None = None,
        threads: int = 1,
        calibration_NCE: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.name, self.version, self.batch_frames = name, version, batch_frames
        self.most_frames = max(batch_frames, _MANY_FRAMES)
        self._shape, self._sort_key = frame_shape, sort_key
        self._weights_EK = None if sort_key is None else sort_key.weights(frame_shape[1])
        self._part = min(batch_frames, max(SIZES))
        self._sample = min(_SAMPLE_FRAMES, self._part)
        parts = -(-batch_frames // self._part)
        self.lanes = min(_MOST_LANES, max(2, -(-2 * threads // parts)))
        options = {
            "INFERENCE_PRECISION_HINT": precision(name),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        self._graphs = Graphs(
            path,
            frame_shape,
            self._weights_EK,
            part=self._part,
            options=options,
            calibration_NCE=calibration_NCE if name == "openvino-int8" else None,
        )
        self._under_way: deque[Later] = deque()
        shapes = self._row_shapes()
        self._slots = deque(_Slot(shapes) for _ in range(self.lanes + _KEPT_BATCHES))
        # Not one of those above: a sample comes in many parts while batches are under way that still need theirs.
        self._sample_slot, self._again_slot = _Slot(shapes), _Slot(shapes)

    def start(self, counts_NCE: Counts, *, dense: bool = False, surprise: bool = False) -> Later:
        """See the port."""
        kind = Kind(scaled=counts_NCE.dtype != np.uint8, dense=dense, surprise=surprise)
        self._slots.rotate(-1)
        return self._start(counts_NCE, kind, self._slots[-1])

    def infer(self, counts_NCE: Counts) -> Floats:
        """Counts (N, C, E) to rates (N, C, E) float32, a few frames at a time: one graph is enough for a sample."""
        return in_batches(self._rates, counts_NCE, self._sample)

    def close(self) -> None:
        """Wait for what is under way and free everything."""
        while self._under_way:
            self._under_way.popleft().result()
        self._graphs.close()
        self._slots.clear()
        self._sample_slot.arrays.clear()
        self._again_slot.arrays.clear()

    def _rates(self, counts_NCE: Counts) -> Floats:
        if self._graphs.quantise is None:
            counts_NCE = counts_NCE.astype(np.float32, copy=False)
        kind = Kind(scaled=counts_NCE.dtype != np.uint8, dense=True, surprise=False)
        rate_NCE = self._start(_filled(counts_NCE, self._sample), kind, self._sample_slot).result().rate_NCE
        assert rate_NCE is not None
        return rate_NCE[: len(counts_NCE)]

    def _start(self, counts_NCE: Counts, kind: Kind, slot: _Slot) -> Later:
        while len(self._under_way) >= self.lanes:
            self._under_way.popleft().result()
        bright_N, part, sizes = self._too_bright(counts_NCE, kind), self._part, self._graphs.sizes
        if _FEW * len(bright_N) > len(counts_NCE):
            counts_NCE, kind, bright_N = counts_NCE.astype(np.float32), kind.without_integers(), bright_N[:0]
            part = self._part if len(counts_NCE) >= self._part else self._graphs.sizes[0]
            sizes = [part]
        self._reserve(slot, kind, -(-len(counts_NCE) // part) * part)
        running = []
        for first in range(0, len(counts_NCE), part):
            part_NCE = counts_NCE[first : first + part]
            net = self._graphs(kind, next(size for size in sizes if size >= len(part_NCE)))
            given_NCE = _filled(part_NCE, net.frames)
            running.append((net, self._run(net, kind, given_NCE, slot, first), given_NCE))

        def finish(batch: Later) -> Inferred:
            # Keeps the counts alive, whose memory the requests share.
            self._wait_for(batch, running)
            self._infer_again(bright_N, counts_NCE, kind, slot)
            return self._inferred(slot, len(counts_NCE), kind)

        pending = Later(finish)
        self._under_way.append(pending)
        return pending

    def _reserve(self, slot: _Slot, kind: Kind, frames: int) -> None:
        for name, rows in self._outputs(kind):
            slot.reserve(name, frames * rows)

    def _run(self, net: Net, kind: Kind, part_NCE: Counts, slot: _Slot, first: int) -> ov.InferRequest:
        """Begin with one part; its outputs go straight to their place in the slot."""
        request = net.request()
        # The tensor shares the array's memory and does not keep it alive: `_start` does.
        request.set_input_tensor(ov.Tensor(part_NCE, shared_memory=True))
        for number, (name, rows) in enumerate(self._outputs(kind)):
            place = slot[name][first * rows : (first + net.frames) * rows]
            request.set_output_tensor(number, ov.Tensor(place, shared_memory=True))
        request.start_async()
        return request

    def _wait_for(self, batch: Later, running: list[tuple[Net, ov.InferRequest, Counts]]) -> None:
        for net, request, _ in running:
            request.wait()
            net.free.append(request)
        if batch in self._under_way:
            self._under_way.remove(batch)

    def _inferred(self, slot: _Slot, frames: int, kind: Kind) -> Inferred:
        channels, moment_NCK = self._shape[0], None
        if self._weights_EK is not None:
            moment_NCK = slot["moments"][: frames * channels].reshape(frames, channels, -1)
        return Inferred(
            phase_N=phase_of(self._sort_key, moment_NCK, frames),
            rate_NCE=slot["rates"][:frames] if kind.dense else None,
            surprise_N=slot["surprise"][:frames, 0] if kind.surprise else None,
        )

    def _too_bright(self, counts_NCE: Counts, kind: Kind) -> npt.NDArray[np.intp]:
        """Numbers of the frames that the integers' ranges are not for."""
        if self._graphs.quantise is None or kind.scaled:
            return np.empty(0, np.intp)
        return np.flatnonzero(hits_of(cast("npt.NDArray[np.uint8]", counts_NCE)) > self._graphs.quantise.most_hits)

    def _infer_again(self, bright_N: npt.NDArray[np.intp], counts_NCE: Counts, kind: Kind, slot: _Slot) -> None:
        """Put in the slot what these few frames give without integers."""
        exact, size = kind.without_integers(), self._graphs.sizes[0]
        self._reserve(self._again_slot, kind, size)
        for first in range(0, len(bright_N), size):
            part_N = bright_N[first : first + size]
            net, given_NCE = self._graphs(exact, size), _filled(counts_NCE[part_N].astype(np.float32), size)
            request = self._run(net, exact, given_NCE, self._again_slot, 0)
            request.wait()
            net.free.append(request)
            for name, rows in self._outputs(kind):
                by_frame, again = (_by_frame(each[name], rows) for each in (slot, self._again_slot))
                by_frame[part_N] = again[: len(part_N)]

    def _outputs(self, kind: Kind) -> list[tuple[str, int]]:
        """Outputs in order, each with its rows per frame."""
        outputs = [("moments", self._shape[0])] if self._weights_EK is not None else []
        outputs += [("rates", 1)] if kind.dense else []
        outputs += [("surprise", 1)] if kind.surprise else []
        return outputs

    def _row_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"rates": self._shape, "surprise": (1,)}
        if self._weights_EK is not None:
            shapes["moments"] = (self._weights_EK.shape[1],)
        return shapes


def _by_frame(rows: Floats, rows_per_frame: int) -> Floats:
    """The same memory, a line for each frame."""
    return rows.reshape(len(rows) // rows_per_frame, -1)


def _filled(counts_NCE: Counts, frames: int) -> Counts:
    """The counts themselves where they have that many frames and lie in order, else a copy with empty frames behind."""
    if len(counts_NCE) == frames and counts_NCE.flags.c_contiguous:
        return counts_NCE if counts_NCE.flags.writeable else _writeable(counts_NCE)
    filled_NCE: Counts = np.zeros((frames, *counts_NCE.shape[1:]), counts_NCE.dtype)
    filled_NCE[: len(counts_NCE)] = counts_NCE
    return filled_NCE


def _writeable(counts_NCE: Counts) -> Counts:
    """The same memory, for a tensor that shares writeable memory only; a graph never writes to what it is given."""
    memory = (ctypes.c_uint8 * counts_NCE.nbytes).from_address(counts_NCE.ctypes.data)
    return np.ndarray(counts_NCE.shape, counts_NCE.dtype, memoryview(memory))
