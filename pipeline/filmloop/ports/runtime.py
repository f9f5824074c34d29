"""What runs the champion's network on every frame."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class InferenceRuntime(Protocol):
    """One loaded model. Thread-compatible: one caller at a time.

    Attributes:
        version: Registry version of the weights it serves.
        name: What runs it, e.g. `torch-cpu`.
    """

    version: str
    name: str

    def infer(self, counts_NCE: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Counts (N, C, E) to rates (N, C, E) float32, expected counts of the whole frame.

        The detector's counts are uint8; thinned ones that were scaled back to the whole frame are float32.
        The returned array is the caller's until the next call.
        """
