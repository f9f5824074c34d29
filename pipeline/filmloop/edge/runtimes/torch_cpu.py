"""PyTorch on the CPU: there wherever weights can be loaded at all, and what the others are measured against.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from filmloop.edge.runtimes.machine import cores
from filmloop.edge.runtimes.pending import BACKLOG_FRAMES, Counts, Done, Floats, in_batches, inferred_from_rates
from filmloop_models.spec import SortKey


class TorchRuntime:
    """A module in evaluation mode, fed from one float32 buffer that is made once. A batch is done within `start`.

    Args:
        module: float32 counts (N, C, E) to float32 rates (N, C, E).
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames of one `start` while the edge keeps up, and of one call of the module in `infer`.
        sort_key: Of the model.
        threads: CPU threads of one operation; 0 leaves them as they are.
    """

    name = "torch"
    lanes = 1

    def __init__(
        self,
        module: nn.Module,
        *,
        version: str,
        frame_shape: tuple[int, int],
        batch_frames: int,
        sort_key: SortKey | None = None,
        threads: int = 0,
    ) -> None:
        self.version, self.batch_frames = version, batch_frames
        self.most_frames = max(batch_frames, BACKLOG_FRAMES)
        self._module, self._sort_key = module.eval(), sort_key
        self._threads, self._caller = threads, 0
        self._input = torch.zeros((self.most_frames, *frame_shape), dtype=torch.float32)
        # NumPy's u8 -> f32 copy also takes read-only arrays, which torch.from_numpy warns about.
        self._input_NCE: npt.NDArray[np.float32] = self._input.numpy()

    def start(self, counts_NCE: Counts, *, dense: bool = False, surprise: bool = False) -> Done:
        """See the port."""
        rate_NCE = self._infer_batch(counts_NCE)
        return Done(inferred_from_rates(self._sort_key, counts_NCE, rate_NCE, dense=dense, surprise=surprise))

    def infer(self, counts_NCE: Counts) -> Floats:
        """Counts (N, C, E) to rates (N, C, E) float32."""
        return in_batches(self._infer_batch, counts_NCE, self.batch_frames)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _infer_batch(self, counts_NCE: Counts) -> Floats:
        if self._threads and self._caller != threading.get_ident():
            # OpenMP keeps the number for each calling thread, and who loads a model is not who runs it.
            self._caller = threading.get_ident()
            torch.set_num_threads(self._threads)
        frames = len(counts_NCE)
        np.copyto(self._input_NCE[:frames], counts_NCE)
        with torch.inference_mode():
            rate_NCE: Floats = self._module(self._input[:frames]).numpy()
        return rate_NCE


def use_threads(threads: int) -> None:
    """Let PyTorch use `threads` CPU threads (0: one for every core this process may use) for one operation."""
    torch.set_num_threads(threads or cores())
