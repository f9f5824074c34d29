"""What is shipped of a network: its weights by name, and an ONNX file for runtimes other than torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from filmloop.core.errors import ConfigError

INPUT, OUTPUT = "counts_NCE", "rate_NCE"
_OPSET = 17
_HINT = "Change the network: docs/howto/add-a-model.md says what the loop asks of one."


def packed_weights(module: nn.Module) -> bytes:
    """The weights as safetensors.

    Raises:
        ConfigError: not all of them are tensors, or two share memory.
    """
    try:
        return save({name: value.contiguous() for name, value in module.state_dict().items()})
    except (AttributeError, RuntimeError, ValueError) as exc:
        said = " ".join(str(exc).split())
        raise ConfigError(f"The weights of this network cannot be shipped: {said}", hint=_HINT) from exc


def export_onnx(module: nn.Module, frame_shape: tuple[int, int], path: Path) -> None:
    """Write `module` with a free batch axis: float32 counts (N, C, E) in, float32 rates (N, C, E) out.

    The TorchScript exporter: 0.2 s and one file, where torch 2.13's dynamo exporter took 3.1 s of a cycle's 10 s overhead,
    printed four warnings about torchvision and put the weights into a second file.

    Raises:
        ConfigError: ONNX knows no form of something that the network does.
        OSError: the disk refuses.
    """
    frames = torch.rand(2, *frame_shape)
    try:
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
    except OSError:
        raise
    except Exception as exc:
        said = str(exc).partition("\n")[0]
        raise ConfigError(f"This network cannot be exported to ONNX: {said}", hint=_HINT) from exc
