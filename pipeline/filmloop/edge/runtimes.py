"""What runs the network on the frames, by the name in the site file: PyTorch on the CPU.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from filmloop.core.errors import ConfigError, VerificationError
from filmloop.ports.runtime import InferenceRuntime
from filmloop.training.load import load_module


class TorchRuntime:
    """A module in evaluation mode, fed from one float32 buffer that is made once.

    Args:
        module: float32 counts (N, C, E) to float32 rates (N, C, E).
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames that the module sees at once; larger blocks are cut.
    """

    name = "torch-cpu"

    def __init__(self, module: nn.Module, *, version: str, frame_shape: tuple[int, int], batch_frames: int) -> None:
        self.version = version
        self._module = module.eval()
        self._input = torch.zeros((batch_frames, *frame_shape), dtype=torch.float32)
        # NumPy's u8 -> f32 copy also takes read-only arrays, which torch.from_numpy warns about.
        self._input_NCE: npt.NDArray[np.float32] = self._input.numpy()

    def infer(self, counts_NCE: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Counts (N, C, E) to rates (N, C, E) float32."""
        batch_frames = len(self._input)
        if len(counts_NCE) <= batch_frames:
            return self._infer_batch(counts_NCE)
        parts = [
            self._infer_batch(counts_NCE[start : start + batch_frames]).copy()
            for start in range(0, len(counts_NCE), batch_frames)
        ]
        return np.concatenate(parts)

    def _infer_batch(self, counts_NCE: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        frames = len(counts_NCE)
        np.copyto(self._input_NCE[:frames], counts_NCE)
        with torch.inference_mode():
            rate_NCE: npt.NDArray[np.float32] = self._module(self._input[:frames]).numpy()
        return rate_NCE


def make_runtime(
    name: str, bundle: Path, *, version: str, frame_shape: tuple[int, int], batch_frames: int
) -> InferenceRuntime:
    """The runtime that `edge.runtime` names, with the weights of a verified bundle.

    Args:
        name: `torch`; another runtime gets its branch here and its name in the site file's schema.
        bundle: Folder of the bundle.
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames that are inferred at once.

    Raises:
        ConfigError: no such runtime.
        VerificationError: the weights do not fit their network.
    """
    if name == "torch":
        return TorchRuntime(load_module(bundle), version=version, frame_shape=frame_shape, batch_frames=batch_frames)
    raise ConfigError(f"There is no runtime {name!r}.", hint='Set [edge] runtime = "torch" in the site file.')


def use_threads(threads: int) -> None:
    """Let PyTorch use `threads` CPU threads for one operation, in this process."""
    torch.set_num_threads(threads)


def check_finite(runtime: InferenceRuntime, frame_shape: tuple[int, int], batch_frames: int) -> None:
    """See that `runtime` makes numbers of the extremes, frames without a count and frames full to the brim.

    Full batches: the first of its size costs milliseconds more than the following, and here nobody waits for it.

    Raises:
        VerificationError: a rate is not finite.
    """
    for count, kind in ((0, "an empty"), (255, "a saturated")):
        if not np.isfinite(runtime.infer(np.full((batch_frames, *frame_shape), count, np.uint8))).all():
            raise VerificationError(
                f"Version {runtime.version} makes rates that are not finite of {kind} frame.",
                hint="Train again, or go back: `filmloop models rollback`.",
                ids={"version": runtime.version},
            )


def check_golden(
    runtime: InferenceRuntime,
    counts_NCE: npt.NDArray[np.uint8],
    golden_NCE: npt.NDArray[np.float32],
    *,
    tolerance: float,
) -> float:
    """Compare what `runtime` makes of the golden counts with what training made; returns the relative RMS difference.

    Raises:
        VerificationError: it is above `tolerance` or not a number, or the output has another shape.
    """
    rate_NCE = runtime.infer(counts_NCE)
    if rate_NCE.shape != golden_NCE.shape:
        raise VerificationError(
            f"Version {runtime.version} makes rates of shape {rate_NCE.shape}, its golden pair has {golden_NCE.shape}.",
            ids={"version": runtime.version},
        )
    scale = float(np.sqrt(np.mean(np.square(golden_NCE, dtype=np.float64))))
    difference = float(np.sqrt(np.mean(np.square(rate_NCE.astype(np.float64) - golden_NCE))))
    relative = difference / max(scale, 1e-12)
    if not relative <= tolerance:
        raise VerificationError(
            f"Version {runtime.version} served by {runtime.name} differs from its golden pair by {relative:.2e} "
            f"(relative RMS; at most {tolerance:.2e}).",
            hint="Its weights or its network code are not those that training used; "
            "`filmloop models show VERSION` tells the code commit.",
            ids={"version": runtime.version},
        )
    return relative
