"""The live weights behind a correction of the gains: counts scaled before the network, its rates scaled back.

Counts that are scaled are no whole numbers, so they take the runtime's way for float32, where rates come back to be
scaled. That costs; it is paid only while a correction is active.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmloop.drift.gain import Gain
from filmloop.edge.runtimes.pending import Counts, Done, Floats, surprise_of
from filmloop.ports.runtime import InferenceRuntime, Inferred
from filmloop_models.spec import SortKey


def behind(runtime: InferenceRuntime) -> InferenceRuntime:
    """The weights themselves: batches with and without a correction may be under way on the same ones."""
    return runtime.base if isinstance(runtime, Corrected) else runtime


class Corrected:
    """An `InferenceRuntime` around another one.

    Keys are those of the corrected frame: what the beam did, not what a channel made of it. Rates predict the counts
    that the detector delivers.

    Args:
        runtime: Serves the weights; whoever closes this one closes it.
        gain: The correction.
        sort_key: Of the model.
    """

    lanes = 1

    def __init__(self, runtime: InferenceRuntime, gain: Gain, sort_key: SortKey | None) -> None:
        self.base, self.gain, self._sort_key = runtime, gain, sort_key
        self.version, self.name, self.batch_frames = runtime.version, runtime.name, runtime.batch_frames
        self._before_C1, self._after_C1 = gain.before_C[:, None], gain.after_C[:, None]

    def start(self, counts_NCE: npt.NDArray[np.uint8], *, dense: bool = False, surprise: bool = False) -> Done:
        """See the port; the batch is done within the call."""
        clean_NCE = self.base.infer(counts_NCE * self._before_C1)
        frames = len(counts_NCE)
        phase_N = np.full(frames, np.nan, np.float32) if self._sort_key is None else self._sort_key(clean_NCE)
        rate_NCE = clean_NCE * self._after_C1 if dense or surprise else None
        return Done(
            Inferred(
                phase_N=phase_N,
                rate_NCE=rate_NCE if dense else None,
                surprise_N=surprise_of(counts_NCE, rate_NCE) if surprise and rate_NCE is not None else None,
            )
        )

    def infer(self, counts_NCE: Counts) -> Floats:
        """See the port."""
        rate_NCE: Floats = self.base.infer(counts_NCE * self._before_C1) * self._after_C1
        return rate_NCE

    def close(self) -> None:
        """See the port."""
        self.base.close()
