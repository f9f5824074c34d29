"""ONNX Runtime on the CPU, full precision: quick for single frames, and on CPUs that OpenVINO does not know well.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from filmloop.edge.runtimes.pending import BACKLOG_FRAMES, Counts, Done, Floats, in_batches, inferred_from_rates
from filmloop_models.spec import SortKey


class OnnxRuntime:
    """A bundle's `model.onnx`, reading from and writing to buffers that are made once. A batch is done within `start`.

    Args:
        path: The file.
        version: Registry version of its weights.
        frame_shape: (C, E).
        batch_frames: Most frames of one `start` while the edge keeps up, and of one call of the network in `infer`.
        sort_key: Of the model.
        threads: CPU threads.
    """

    name = "onnxruntime"
    lanes = 1

    def __init__(
        self,
        path: Path,
        *,
        version: str,
        frame_shape: tuple[int, int],
        batch_frames: int,
        sort_key: SortKey | None = None,
        threads: int = 1,
    ) -> None:
        self.version, self.batch_frames, self._sort_key = version, batch_frames, sort_key
        self.most_frames = max(batch_frames, BACKLOG_FRAMES)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors: it warns of initialisers that nothing uses
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._counts_NCE = np.zeros((self.most_frames, *frame_shape), np.float32)
        # A result outlives the two batches after it.
        self._rates = [np.empty((self.most_frames, *frame_shape), np.float32) for _ in range(3)]
        self._turn = 0

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
        frames = len(counts_NCE)
        self._turn = (self._turn + 1) % len(self._rates)
        input_NCE, rate_NCE = self._counts_NCE[:frames], self._rates[self._turn][:frames]
        np.copyto(input_NCE, counts_NCE)
        binding = self._session.io_binding()
        binding.bind_input(self._input, "cpu", 0, np.float32, input_NCE.shape, input_NCE.ctypes.data)
        binding.bind_output(self._output, "cpu", 0, np.float32, rate_NCE.shape, rate_NCE.ctypes.data)
        self._session.run_with_iobinding(binding)
        return rate_NCE
