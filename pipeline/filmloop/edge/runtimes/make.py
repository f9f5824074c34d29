"""A runtime by the name that the site file gives it; its package is imported only then."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from filmloop.bundle import ONNX, RESULT, load_golden
from filmloop.config.schema import RuntimeName
from filmloop.core.documents import TrainResult
from filmloop.core.errors import ConfigError, VerificationError
from filmloop.edge.runtimes.machine import cores, has_gpu_driver
from filmloop.ports.runtime import InferenceRuntime
from filmloop_models import catalog

NAMES = tuple(name for name in get_args(RuntimeName) if name != "auto")

_MODULES = {
    "torch": "torch_cpu",
    "onnxruntime": "onnx",
    "openvino-f32": "openvino",
    "openvino-bf16": "openvino",
    "openvino-int8": "openvino",
    "cuda": "cuda",
}

_SUITS_CPU, _SUITS_GPU = 256, 4096
_ON_TORCH = ("torch", "cuda")
_REDUCED = ("openvino-bf16", "openvino-int8", "cuda")


def tolerance_of(name: str, *, model: float, full: float) -> float:
    """Largest relative RMS difference from the golden pair that a runtime may have.

    Args:
        name: The runtime.
        model: `tolerance` of the model, for reduced precision.
        full: `edge.golden_tolerance`, for full precision.
    """
    return max(model, full) if name in _REDUCED else full


def batch_of(name: str, asked: int) -> int:
    """Most frames of one batch: as many as `edge.batch_frames` asks for, or what suits the runtime where that is 0."""
    return asked or (_SUITS_GPU if name == "cuda" else _SUITS_CPU)


def make_runtime(
    name: str,
    bundle: Path,
    *,
    version: str,
    frame_shape: tuple[int, int],
    batch_frames: int,
    threads: int = 0,
    tune: bool = False,
) -> InferenceRuntime:
    """The runtime of that name, with the weights of a verified bundle.

    Args:
        name: A value of `edge.runtime` other than `auto`.
        bundle: Folder of the bundle.
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames that are inferred at once.
        threads: CPU threads; 0: one for every core this process may use.
        tune: Compile the network for a GPU; the others do not know of it.

    Raises:
        ConfigError: no such runtime, or this machine does not have it.
        VerificationError: the weights do not fit their network, or the bundle lacks what this runtime loads.
    """
    require(name)
    sort_key = catalog.get(TrainResult.read(bundle / RESULT).model.name).sort_key
    common: dict[str, Any] = {
        "version": version,
        "frame_shape": frame_shape,
        "batch_frames": batch_frames,
        "sort_key": sort_key,
    }
    threads = threads or cores()
    made: InferenceRuntime
    if name in _ON_TORCH:
        from filmloop.training.load import load_module  # PyTorch takes seconds to load: only where it is what runs

        module = load_module(bundle)
        if name == "torch":
            made = require(name).TorchRuntime(module, threads=threads, **common)
        else:
            made = require(name).CudaRuntime(module, tuned=tune, **common)
        return made
    if not (bundle / ONNX).exists():
        raise VerificationError(
            f"Version {version} has no {ONNX}, which {name} loads.",
            hint='Train again, or set [edge] runtime = "torch".',
            ids={"version": version},
        )
    if name == "onnxruntime":
        made = require(name).OnnxRuntime(bundle / ONNX, threads=threads, **common)
        return made
    calibration_NCE = load_golden(bundle)[0] if name == "openvino-int8" else None
    made = require(name).OpenVinoRuntime(
        bundle / ONNX, name=name, threads=threads, calibration_NCE=calibration_NCE, **common
    )
    return made


def is_emulated(name: str) -> bool:
    """Whether this machine has no units for the precision of a runtime that it has.

    Raises:
        ConfigError: it does not have the runtime.
    """
    require(name)
    if name != "openvino-bf16":
        return False
    from filmloop.edge.runtimes.openvino_graphs import has_bfloat16

    return not has_bfloat16()


def require(name: str) -> ModuleType:
    """The module of a runtime, imported.

    Raises:
        ConfigError: no such runtime, or this machine does not have its package or its device.
    """
    if name not in _MODULES:
        raise ConfigError(
            f"There is no runtime {name!r}.", hint=f"Set [edge] runtime to auto or one of {', '.join(NAMES)}."
        )
    if name == "cuda" and not has_gpu_driver():
        raise _no_gpu()
    try:
        module = importlib.import_module(f"filmloop.edge.runtimes.{_MODULES[name]}")
    except ImportError as exc:
        raise ConfigError(
            f"The package of runtime {name} is not installed: {exc}.",
            hint="pip install -c constraints.txt -e '.[edge]', or set [edge] runtime = \"auto\".",
        ) from exc
    if name == "cuda" and not module.is_available():
        raise _no_gpu()
    return module


def _no_gpu() -> ConfigError:
    return ConfigError(
        "There is no CUDA device that PyTorch can use.",
        hint='Install a CUDA build of torch on a machine with a GPU, or set [edge] runtime = "auto".',
    )
