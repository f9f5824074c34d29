"""The network as an ONNX file, for runtimes other than torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

INPUT, OUTPUT = "counts_NCE", "rate_NCE"
_OPSET = 17


def export_onnx(module: nn.Module, frame_shape: tuple[int, int], path: Path) -> None:
    """Write `module` with a free batch axis: float32 counts (N, C, E) in, float32 rates (N, C, E) out.

    The TorchScript exporter: 0.2 s and one file, where torch 2.13's dynamo exporter took 3.1 s of a cycle's 10 s overhead,
    printed four warnings about torchvision and put the weights into a second file.
    """
    frames = torch.rand(2, *frame_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its age; the tests compare its output with torch's
        torch.onnx.export(
            module.cpu().eval(),
            (frames,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
            opset_version=_OPSET,
            dynamo=False,
        )
