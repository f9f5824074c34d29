"""The compiled graphs of one `model.onnx`: one for each batch size and for each set of outputs, made when first asked for.

Graphs have static shapes: compiling one takes 0.03 s for `mixer`, 0.1 s for `cookienet`. A graph gives only what was asked for.

Shape suffixes: N frames, C channels, E energy bins, K moments.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import openvino as ov

from filmloop.edge.runtimes.graph import rewrite, with_bytes_in, with_heads
from filmloop.edge.runtimes.quantise import Quantiser, bytes_to_products

SIZES = (16, 64, 256)
"""Frames that graphs are compiled for, beside the full batch. Above 256 the layers' outputs outgrow a core's L2."""
_BREATH_S = 0.02


class Kind(NamedTuple):
    """What a graph takes and gives."""

    scaled: bool  # float32 counts instead of uint8
    dense: bool
    surprise: bool

    def without_integers(self) -> Self:
        """The same outputs from float32 counts, which are no whole numbers and so never run in eight bits."""
        return self._replace(scaled=True)


@dataclass(eq=False, slots=True)
class Net:
    """One compiled graph, for batches of `frames`, and its requests that are free."""

    compiled: ov.CompiledModel
    frames: int
    free: list[ov.InferRequest] = field(default_factory=list)

    def request(self) -> ov.InferRequest:
        """One that nobody uses."""
        return self.free.pop() if self.free else self.compiled.create_infer_request()


class Graphs:
    """Those of one model.

    Args:
        path: The file.
        frame_shape: (C, E).
        weights_EK: What makes moments of rates; None without a sort key.
        part: Most frames of a graph.
        options: Of the plugin.
        calibration_NCE: Counts by which eight-bit integers find their ranges; None for none.

    Attributes:
        sizes: Frames that there are graphs for, in order.
        quantise: What marks a model for integers; None for none.
        made: What was compiled.
    """

    def __init__(
        self,
        path: Path,
        frame_shape: tuple[int, int],
        weights_EK: npt.NDArray[np.float32] | None,
        *,
        part: int,
        options: Mapping[str, Any],
        calibration_NCE: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self._model, self._shape, self._weights_EK = core().read_model(path), frame_shape, weights_EK
        self._options = dict(options)
        self.sizes = sorted({size for size in SIZES if size < part} | {part})
        self.quantise: Quantiser | None = None
        if calibration_NCE is not None:
            self.quantise = Quantiser(self._rewritten(len(calibration_NCE)), calibration_NCE, core())
        self._bases: dict[int, ov.Model] = {}
        self.made: dict[tuple[Kind, int], Net] = {}

    def __call__(self, kind: Kind, frames: int) -> Net:
        """The graph for batches of so many frames. One in integers brings those that stand in for it."""
        if (kind, frames) not in self.made:
            if frames not in self._bases:
                self._bases[frames] = self._rewritten(frames)
            model = self._bases[frames].clone()
            quantise = None if kind.scaled else self.quantise
            if quantise is not None:
                quantise(model)
            # A graph without an output does not exist: a model without a key gives its rates.
            dense = kind.dense or (self._weights_EK is None and not kind.surprise)
            model = with_heads(model, self._weights_EK, dense=dense, surprise=kind.surprise)
            model = model if kind.scaled else with_bytes_in(model)
            if quantise is not None:
                bytes_to_products(model)
                for size in {self.sizes[0], frames} if frames == self.sizes[-1] else {self.sizes[0]}:
                    self(kind.without_integers(), size)  # not when the first bright frame comes
            self.made[kind, frames] = Net(core().compile_model(model, "CPU", self._options), frames)
        return self.made[kind, frames]

    def close(self) -> None:
        """Free them."""
        # Each destructor holds Python's lock for milliseconds: one at a time, so that others may infer meanwhile.
        while self.made:
            _, net = self.made.popitem()
            while net.free:
                net.free.pop()
                time.sleep(_BREATH_S)
            del net
            time.sleep(_BREATH_S)
        self._bases.clear()

    def _rewritten(self, frames: int) -> ov.Model:
        model = self._model.clone()
        model.reshape([frames, *self._shape])
        rewrite(model)
        return model


@lru_cache(maxsize=1)
def core() -> ov.Core:
    """The one of this process."""
    return ov.Core()


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; others emulate it, 8 (`cookienet`) to 21 times (`mixer`) slower than float32."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precision(name: str) -> str:
    """What a runtime of this name computes in that is no integer."""
    return "bf16" if name == "openvino-bf16" or (name == "openvino-int8" and has_bfloat16()) else "f32"
