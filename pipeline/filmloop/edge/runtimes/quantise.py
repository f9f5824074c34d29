"""Eight-bit integers for the products of a graph, by its own calibration: no other package, no labels.

Weights are rounded symmetrically for each output feature. Activations are rounded to one grid for the whole tensor, but each
of their features is first divided by a factor of its own, which its weights take up: a few features reach ten times as
far as the others, and a common range would leave those a handful of steps (SmoothQuant; Xiao et al., arXiv 2211.10438).
The counts that a detector brings are whole numbers below 256 and stay as they are. The plugin turns the marks that are
set here (FakeQuantize) into int8 kernels.

Ranges are twice those of the calibration frames. A network that adds and rectifies has activations about in proportion
to its counts, so what is much brighter would be clipped: `most_hits` says from where on, and the runtime infers such
frames without integers. What is dimmer has the same steps under smaller numbers. Relative RMS from float32, `mixer` after
60 s of training, 512 simulated frames with their counts multiplied (halves rounded down):

    1/4     1/2     1       2       4
    .098    .053    .029    .020    .10     one range for each tensor
    .074    .039    .022    .033    .14     a factor for each feature
    .074    .039    .022    .029    .013    the brighter ones without integers: what is served

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as op

_HEADROOM = 2.0
_SMOOTHING = 0.7
"""1 makes the activations of all features equally large, 0 their weights; both are rounded."""
_LEVELS, _WEIGHT_LEVELS = 256, 255
_DOWN = -128 / 127
"""Lower end of a signed range whose upper end is 1: zero is then one of the 256 levels."""
_HALF = 0.5
"""Counts are halved and their weights doubled, which changes nothing: the plugin knows bytes by such a factor."""
_TINY = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class _Activations:
    """What goes into one product.

    Attributes:
        largest_F: Largest magnitude of each feature, float32.
        is_positive: Whether none of them is negative.
        is_counts: Whether it is what the detector brings.
    """

    largest_F: npt.NDArray[np.float32]
    is_positive: bool
    is_counts: bool


class _Axes:
    """Axes of a product: of the features in its activations, and of features and outputs in its weights."""

    def __init__(self, node: ov.Node) -> None:
        match node.get_type_name():
            case "MatMul":
                self.outputs = 0 if node.get_attributes()["transpose_b"] else 1
                self.features, self.activations = 1 - self.outputs, len(node.input_value(0).get_shape()) - 1
            case "Convolution":
                self.outputs, self.features, self.activations = 0, 1, 1
            case _:
                self.outputs, self.features, self.activations = 1, 0, 1


_PRODUCTS = ("MatMul", "Convolution", "ConvolutionBackpropData")


class Quantiser:
    """Marks the products of a model, whatever its batch size, with the ranges that they have on some counts.

    Args:
        model: Rewritten, float32 counts (N, C, E) in, for exactly N frames.
        counts_NCE: (N, C, E) uint8.
        core: Runs it once.

    Attributes:
        most_hits: A frame with more is brighter than the ranges are for.
    """

    def __init__(self, model: ov.Model, counts_NCE: npt.NDArray[np.uint8], core: ov.Core) -> None:
        self.most_hits = _HEADROOM * float(hits_of(counts_NCE).max())
        products = _products(model)
        probe = ov.Model([op.result(node.input_value(0)) for node in products], model.get_parameters(), "ranges")
        found = core.compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(counts_NCE.astype(np.float32))
        self._activations = [_activations(node, np.asarray(found[number])) for number, node in enumerate(products)]

    def __call__(self, model: ov.Model) -> None:
        """Mark this one, in place."""
        for node, activations in zip(_products(model), self._activations, strict=True):
            weights, axes = node.input_value(1).get_node().get_data(), _Axes(node)
            if activations.is_counts:
                marked, weights = op.multiply(node.input_value(0), op.constant(np.float32(_HALF))), weights / _HALF
            else:
                factor_F = _factors(activations, weights, axes)
                marked = _marked(node.input_value(0), factor_F, axes, is_positive=activations.is_positive)
                weights = weights * _along(factor_F, weights.ndim, axes.features)
            node.input(0).replace_source_output(marked.output(0))
            node.input(1).replace_source_output(_rounded(weights.astype(np.float32), axes).output(0))


def bytes_to_products(model: ov.Model) -> None:
    """Let the products that take counts read the bytes themselves, once a quantised model is fed with bytes.

    Reshaped and then widened instead of the other way round: the plugin looks for bytes right before the factor.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply" or not _is_counts(node.input_value(0)):
            continue
        source = node.input_value(0)
        while source.get_node().get_type_name() != "Parameter":
            source = source.get_node().input_value(0)
        shape = np.array(list(node.output(0).get_shape()), np.int64)
        widened = op.convert(op.reshape(source, op.constant(shape), False), "f32")
        node.output(0).replace(op.multiply(widened, node.input_value(1)).output(0))


def hits_of(counts_NCE: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Hits of each frame, (N,); .4 us for 16 x 128."""
    hits_N: npt.NDArray[np.uint32] = np.add.reduce(counts_NCE.reshape(len(counts_NCE), -1), axis=1, dtype=np.uint32)
    return hits_N


def _products(model: ov.Model) -> list[ov.Node]:
    """Every product with constant weights, in the order of the graph."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in _PRODUCTS and node.input_value(1).get_node().get_type_name() == "Constant"
    ]


def _is_counts(value: ov.Output) -> bool:
    """Whether it is the detector's counts, in whatever shape and type."""
    node = value.get_node()
    while node.get_type_name() in ("Reshape", "Unsqueeze", "Squeeze", "Convert"):
        node = node.input_value(0).get_node()
    return str(node.get_type_name()) == "Parameter"


def _activations(node: ov.Node, values: npt.NDArray[np.float32]) -> _Activations:
    axis = _Axes(node).activations
    largest_F = np.abs(values).max(axis=tuple(other for other in range(values.ndim) if other != axis))
    return _Activations(
        largest_F=_HEADROOM * np.maximum(largest_F, max(_TINY * float(largest_F.max()), _TINY)),
        is_positive=bool(values.min() >= 0),
        is_counts=_is_counts(node.input_value(0)),
    )


def _factors(activations: _Activations, weights: npt.NDArray[np.float32], axes: _Axes) -> npt.NDArray[np.float32]:
    """What each feature is divided by, so that none exceeds 1."""
    others = tuple(axis for axis in range(weights.ndim) if axis != axes.features)
    weight_F = np.maximum(np.abs(weights).max(axis=others), _TINY)
    factor_F = activations.largest_F**_SMOOTHING / weight_F ** (1 - _SMOOTHING)
    return np.asarray(factor_F * (activations.largest_F / factor_F).max(), np.float32)


def _marked(value: ov.Output, factor_F: npt.NDArray[np.float32], axes: _Axes, *, is_positive: bool) -> ov.Node:
    """Each feature from `-factor` (or 0) to `factor`, brought to the grid from -1 (or 0) to 1."""
    high = _along(factor_F, len(value.get_shape()), axes.activations)
    down = 0.0 if is_positive else _DOWN
    limits = (high * np.float32(down), high, np.float32(down), np.float32(1.0))
    return op.fake_quantize(value, *(op.constant(limit) for limit in limits), _LEVELS)


def _rounded(weights: npt.NDArray[np.float32], axes: _Axes) -> ov.Node:
    others = tuple(axis for axis in range(weights.ndim) if axis != axes.outputs)
    largest = np.maximum(np.abs(weights).max(axis=others, keepdims=True), 1e-12)
    low, high = op.constant(-largest), op.constant(largest)
    return op.fake_quantize(op.constant(weights), low, high, low, high, _WEIGHT_LEVELS)


def _along(factor_F: npt.NDArray[np.float32], dimensions: int, axis: int) -> npt.NDArray[np.float32]:
    """The factors in the shape in which they multiply that axis."""
    return factor_F.reshape([-1 if each == axis else 1 for each in range(dimensions)])
