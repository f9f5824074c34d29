"""PyTorch on one NVIDIA GPU: bfloat16, captured graphs, copies that overlap with computing.

    counts ─► pinned slot ─► lane: device counts ─► graph (widen, network, heads) ─► device outputs ─► pinned slot ─► result
             uint8, copied by the host                                              moments; rates only where asked

Two lanes take turns, each with a stream, so that one copies while the other computes; graphs of a lane share a memory
pool, which is safe because a stream runs them one after the other and outputs lie outside of it. Rates cross the bus as
float32: 8 GB/s at a million frames/s is a sixth of the bus, while widening on the host would cost 1 us a frame.

Known trap: a captured graph reads weights where they lay when it was captured. They are copied into that place
(`put_weights`), never exchanged; nothing here uses autocast, whose cast copies would be captured in their stead.

Needs torch, NumPy and the model package only. Shape suffixes: N frames, C channels, E energy bins, K moments.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from filmloop.core.poisson import RATE_FLOOR
from filmloop.edge.runtimes.pending import Counts, Done, Floats, Later, in_batches, inferred_from_rates, phase_of
from filmloop.ports.runtime import Inferred
from filmloop_models.spec import SortKey

_SIZES = (16, 64, 256, 1024)
"""Frames that graphs are captured for, beside `batch_frames`."""

_WARM_UPS = 3
"""Runs before a capture: libraries choose their algorithms in the first."""

_KEPT_BATCHES = 2
"""A result is the caller's until so many later batches are finished."""


def is_available() -> bool:
    """Whether PyTorch sees a CUDA device."""
    return torch.cuda.is_available()


class Engine(Protocol):
    """The device calls, all of them: what cannot run on a CPU. A test has one that computes at once."""

    device: torch.device
    dtype: torch.dtype

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device copies from and to by itself."""

    def stream(self) -> Any:
        """A queue of work."""

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Work begun in the block goes to that stream."""

    def pool(self) -> Any:
        """Memory that the graphs of one stream share."""

    def tuned(self, module: nn.Module) -> nn.Module:
        """The same network, with the same weights, compiled for this device; takes its time when it is first run."""

    def capture(self, work: Callable[[], None], stream: Any, pool: Any) -> Callable[[], None]:
        """Record `work` on the stream; returns what replays it on the stream that is current then."""

    def done(self, stream: Any) -> Callable[[], None]:
        """Waits for all that the stream was given until now."""


class CudaEngine:
    """The calls on the current CUDA device."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Engine`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def stream(self) -> torch.cuda.Stream:
        """See `Engine`."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """See `Engine`."""
        return torch.cuda.stream(stream)

    def pool(self) -> Any:
        """See `Engine`."""
        return torch.cuda.graph_pool_handle()

    def tuned(self, module: nn.Module) -> nn.Module:
        """See `Engine`. Weights stay arguments of what is compiled: nothing is frozen into it."""
        compiled = torch.compile(module, mode="max-autotune-no-cudagraphs", dynamic=False)
        assert isinstance(compiled, nn.Module)
        return compiled

    def capture(self, work: Callable[[], None], stream: torch.cuda.Stream, pool: Any) -> Callable[[], None]:
        """See `Engine`. Another thread's runtime goes on meanwhile: nothing here synchronises the device."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
            stream.synchronize()
            # Thread-local: what other threads call in the meantime does not spoil the capture, nor the other way round.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def done(self, stream: torch.cuda.Stream) -> Callable[[], None]:
        """See `Engine`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event.synchronize


class _Wanted(NamedTuple):
    """What a graph gives beside moments."""

    dense: bool
    surprise: bool


@dataclass(eq=False, slots=True, kw_only=True)
class _Lane:
    """What one stream works with, on the device.

    Attributes:
        counts: uint8 (batch, C, E).
        outputs: float32, by name: moments (batch, C, K), rates (batch, C, E), surprise (batch,).
        graphs: What replays the network, by what is wanted and for how many frames.
    """

    stream: Any
    pool: Any
    counts: torch.Tensor
    outputs: dict[str, torch.Tensor]
    graphs: dict[tuple[_Wanted, int], Callable[[], None]] = field(default_factory=dict)


@dataclass(eq=False, slots=True, kw_only=True)
class _Slot:
    """Pinned host memory of one batch: counts uint8, outputs float32 as in a lane, made when first wanted."""

    counts: torch.Tensor
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


class CudaRuntime:
    """A network on the GPU, two batches under way.

    Args:
        module: float32 counts (N, C, E) to rates; it is copied, never changed.
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames of one `start`.
        sort_key: Of the model.
        tuned: Have the network compiled for full batches: half a minute for a network of convolutions that is three
            times as fast then; PyTorch keeps what it has found, so that the next version takes seconds.
        engine: The device calls.
    """

    name = "cuda"
    lanes = 2

    def __init__(
        self,
        module: nn.Module,
        *,
        version: str,
        frame_shape: tuple[int, int],
        batch_frames: int,
        sort_key: SortKey | None = None,
        tuned: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self.version, self.batch_frames, self.most_frames = version, batch_frames, batch_frames
        self._engine: Engine = engine or CudaEngine()
        self._shape, self._sort_key = frame_shape, sort_key
        self._sizes = sorted({size for size in _SIZES if size < batch_frames} | {batch_frames})
        self._weights_EK: torch.Tensor | None = None
        setup = self._engine.stream()
        with self._engine.on(setup):
            self._module = _copied(module, self._engine.device, self._engine.dtype)
            self._full = self._engine.tuned(self._module) if tuned else None
            if sort_key is not None:
                self._weights_EK = torch.from_numpy(sort_key.weights(frame_shape[1])).to(self._engine.device)
            self._lanes = deque(self._lane() for _ in range(self.lanes))
        # Streams do not wait for each other: what one has filled must be there before another reads it.
        self._engine.done(setup)()
        self._slots = deque(
            _Slot(counts=self._engine.pinned((batch_frames, *frame_shape), torch.uint8))
            for _ in range(self.lanes + _KEPT_BATCHES)
        )
        self._under_way: deque[Later] = deque()

    def start(self, counts_NCE: Counts, *, dense: bool = False, surprise: bool = False) -> Later | Done:
        """See the port; scaled counts are done within the call, eagerly."""
        if counts_NCE.dtype != np.uint8:
            rate_NCE = self._rates(counts_NCE)
            return Done(inferred_from_rates(self._sort_key, counts_NCE, rate_NCE, dense=dense, surprise=surprise))
        while len(self._under_way) >= self.lanes:
            self._under_way.popleft().result()
        self._lanes.rotate(-1)
        self._slots.rotate(-1)
        lane, slot, frames = self._lanes[-1], self._slots[-1], len(counts_NCE)
        wanted, size = _Wanted(dense, surprise), next(size for size in self._sizes if size >= frames)
        replay = self._graph(lane, wanted, size)
        slot.counts.numpy()[:frames] = counts_NCE
        with self._engine.on(lane.stream):
            # Rows beyond `frames` are of an earlier batch: frames do not know each other, and these are not copied back.
            lane.counts[:frames].copy_(slot.counts[:frames], non_blocking=True)
            replay()
            for name in self._outputs(wanted):
                self._host(slot, name)[:frames].copy_(lane.outputs[name][:frames], non_blocking=True)
            wait = self._engine.done(lane.stream)
        pending = Later(lambda pending: self._finish(pending, wait, slot, wanted, frames))
        self._under_way.append(pending)
        return pending

    def infer(self, counts_NCE: Counts) -> Floats:
        """Counts (N, C, E) to rates (N, C, E) float32."""
        return in_batches(self._rates, counts_NCE, self.batch_frames)

    def put_weights(self, module: nn.Module, *, version: str) -> None:
        """Serve these weights from the next `start` on: copied to where the captured graphs read them.

        Batches under way are finished first, so that each is of one version.

        Raises:
            ValueError: names or shapes differ from those of the module before.
        """
        self._drain()
        served, given = self._module.state_dict(), module.state_dict()
        if {name: value.shape for name, value in served.items()} != {
            name: value.shape for name, value in given.items()
        }:
            raise ValueError("the new weights are of another network")
        with torch.no_grad(), self._engine.on(self._lanes[-1].stream):
            for name, value in served.items():
                value.copy_(given[name])
            self._engine.done(self._lanes[-1].stream)()
        self.version = version

    def replays_s(self, repeats: int) -> float:
        """Seconds of so many full batches on the device alone: no copy from or to the host, keys only."""
        self._drain()
        lane = self._lanes[-1]
        replay = self._graph(lane, _Wanted(dense=False, surprise=False), self.batch_frames)
        with self._engine.on(lane.stream):
            replay()
            self._engine.done(lane.stream)()
            begun_s = time.perf_counter()
            for _ in range(repeats):
                replay()
            self._engine.done(lane.stream)()
        return time.perf_counter() - begun_s

    def close(self) -> None:
        """Wait for what is under way and free everything."""
        self._drain()
        for lane in self._lanes:
            lane.graphs.clear()
        self._lanes.clear()
        self._slots.clear()

    def _drain(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()

    def _rates(self, counts_NCE: Counts) -> Floats:
        if counts_NCE.dtype == np.uint8:
            rate_NCE = self.start(counts_NCE.astype(np.uint8, copy=False), dense=True).result().rate_NCE
            assert rate_NCE is not None
            return rate_NCE
        # Scaled counts come a few at a time, for the quality: no graph of their own.
        lane = self._lanes[-1]
        with torch.no_grad(), self._engine.on(lane.stream):
            counts = torch.from_numpy(np.array(counts_NCE)).to(self._engine.device, self._engine.dtype)
            rates: Floats = self._module(counts).float().cpu().numpy()
        return rates

    def _finish(self, pending: Later, wait: Callable[[], None], slot: _Slot, wanted: _Wanted, frames: int) -> Inferred:
        wait()
        if pending in self._under_way:
            self._under_way.remove(pending)
        made = {name: self._host(slot, name).numpy()[:frames] for name in self._outputs(wanted)}
        return Inferred(
            phase_N=phase_of(self._sort_key, made.get("moments"), frames),
            rate_NCE=made.get("rates"),
            surprise_N=made.get("surprise"),
        )

    def _graph(self, lane: _Lane, wanted: _Wanted, size: int) -> Callable[[], None]:
        if (wanted, size) not in lane.graphs:
            # For all lanes: who checks a runtime before it serves shall not have to know how many there are.
            for one in self._lanes:
                work = partial(self._work, one, wanted, size)
                one.graphs[wanted, size] = self._engine.capture(work, one.stream, one.pool)
        return lane.graphs[wanted, size]

    def _work(self, lane: _Lane, wanted: _Wanted, size: int) -> None:
        with torch.no_grad():
            for name, value in self._compute(lane.counts[:size], wanted).items():
                lane.outputs[name][:size].copy_(value)

    def _compute(self, counts: torch.Tensor, wanted: _Wanted) -> dict[str, torch.Tensor]:
        """Everything that is wanted of uint8 counts, float32, by name."""
        full = self._full if len(counts) == self.batch_frames else None
        rate, made = (self._module if full is None else full)(counts.to(self._engine.dtype)).float(), {}
        if self._weights_EK is not None:
            made["moments"] = rate @ self._weights_EK
        if wanted.dense:
            made["rates"] = rate
        if wanted.surprise:
            n, safe = counts.float(), rate.clamp(min=RATE_FLOOR)
            made["surprise"] = (safe - n + n * (n.clamp(min=1).log() - safe.log())).sum(dim=(1, 2))
        return made

    def _outputs(self, wanted: _Wanted) -> list[str]:
        names = {"moments": self._weights_EK is not None, "rates": wanted.dense, "surprise": wanted.surprise}
        return [name for name, there in names.items() if there]

    def _host(self, slot: _Slot, name: str) -> torch.Tensor:
        if name not in slot.outputs:
            slot.outputs[name] = self._engine.pinned(self._output_shape(name), torch.float32)
        return slot.outputs[name]

    def _output_shape(self, name: str) -> tuple[int, ...]:
        moments = 0 if self._weights_EK is None else self._weights_EK.shape[1]
        inner = {"moments": (self._shape[0], moments), "rates": self._shape, "surprise": ()}[name]
        return self.batch_frames, *inner

    def _lane(self) -> _Lane:
        device = self._engine.device
        return _Lane(
            stream=self._engine.stream(),
            pool=self._engine.pool(),
            counts=torch.zeros((self.batch_frames, *self._shape), dtype=torch.uint8, device=device),
            outputs={
                name: torch.zeros(self._output_shape(name), device=device) for name in ("moments", "rates", "surprise")
            },
        )


def _copied(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode that shares nothing with the original."""
    return copy.deepcopy(module).eval().requires_grad_(False).to(device, dtype)
