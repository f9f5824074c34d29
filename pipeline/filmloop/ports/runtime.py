"""What runs the champion's network on every frame.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """What the network makes of a batch; arrays are the caller's until the batch after the next is finished.

    Attributes:
        phase_N: float32 (N,), the sort key; NaN where the frame or the model has none.
        rate_NCE: float32 (N, C, E) rates, where they were asked for.
        surprise_N: float32 (N,), Poisson deviance-like misfit of each frame under its own rates, nats; higher is
            more surprising; where it was asked for.
    """

    phase_N: npt.NDArray[np.float32]
    rate_NCE: npt.NDArray[np.float32] | None = None
    surprise_N: npt.NDArray[np.float32] | None = None


class Wanted(NamedTuple):
    """What the edge asks of every batch beside its keys.

    Attributes:
        dense: Rates.
        surprise: Misfits.
    """

    dense: bool = False
    surprise: bool = False


KEYS_ONLY = Wanted()


class Pending(Protocol):
    """A batch under way."""

    def result(self) -> Inferred:
        """Wait for it."""


class InferenceRuntime(Protocol):
    """One loaded model. One caller at a time.

    Attributes:
        version: Registry version of the weights it serves.
        name: What runs it: a value of `edge.runtime` other than `auto`.
        batch_frames: Most frames of one `start` while the edge keeps up: so many are inferred within its latency budget.
        most_frames: Most frames of one `start` at all. Who is behind takes up to these: larger batches are faster for all.
        lanes: How many batches may be under way at once; with more the call waits.
    """

    version: str
    name: str
    batch_frames: int
    most_frames: int
    lanes: int

    def start(
        self,
        counts_NCE: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
        *,
        dense: bool = False,
        surprise: bool = False,
    ) -> Pending:
        """Begin with at most `most_frames` frames, (N, C, E), which must not change before their result.

        The detector's counts are uint8; counts that were scaled are float32, and may be slower.

        Rates stay in the runtime unless `dense` asks for them: 8 kB a frame that nobody reads cost a tenth of the rate.
        """

    def infer(self, counts_NCE: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Counts (N, C, E), any number of frames, to rates (N, C, E) float32, expected counts of the whole frame.

        The detector's counts are uint8; thinned ones that were scaled back to the whole frame are float32.
        The returned array is the caller's until the next call.
        """

    def close(self) -> None:
        """Free memory and threads; may be called twice."""
