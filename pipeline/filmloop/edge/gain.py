"""The live weights behind a correction of the gains: counts scaled before the network, its rates scaled back.

Counts that are scaled are no whole numbers, so they take the runtime's way for float32, four times the bytes. That costs;
it is paid only while a correction is active.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from filmloop.drift.gain import Gain
from filmloop.edge.runtimes.pending import BACKLOG_FRAMES, Counts, Floats, Later, surprise_of
from filmloop.ports.runtime import InferenceRuntime, Inferred, Pending
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

    def __init__(self, runtime: InferenceRuntime, gain: Gain, sort_key: SortKey | None) -> None:
        self.base, self.gain, self._sort_key = runtime, gain, sort_key
        self.version, self.name, self.batch_frames = runtime.version, runtime.name, runtime.batch_frames
        # Scaled counts are copies, 8 kB a frame for every batch under way.
        self.most_frames = min(runtime.most_frames, max(runtime.batch_frames, BACKLOG_FRAMES))
        self.lanes = runtime.lanes
        self._before_C1, self._after_C1 = gain.before_C[:, None], gain.after_C[:, None]
        # One for each batch under way, and one that is being filled.
        self._scaled: deque[Floats] = deque()

    def start(self, counts_NCE: Counts, *, dense: bool = False, surprise: bool = False) -> Later:
        """See the port."""
        scaled_NCE = self._scaled_of(counts_NCE)
        # How surprising a frame is, is a matter of the counts that were counted: not the runtime's, which sees others.
        pending = self.base.start(scaled_NCE, dense=dense or surprise)
        return Later(lambda _: self._finish(pending, counts_NCE, dense=dense, surprise=surprise))

    def _finish(self, pending: Pending, counts_NCE: Counts, *, dense: bool, surprise: bool) -> Inferred:
        made = pending.result()
        rate_NCE = None if made.rate_NCE is None else made.rate_NCE * self._after_C1
        return Inferred(
            phase_N=made.phase_N,
            rate_NCE=rate_NCE if dense else None,
            surprise_N=surprise_of(counts_NCE, rate_NCE) if surprise and rate_NCE is not None else None,
        )

    def _scaled_of(self, counts_NCE: Counts) -> Floats:
        if not self._scaled:
            shape = (self.most_frames, *counts_NCE.shape[1:])
            self._scaled.extend(np.empty(shape, np.float32) for _ in range(self.lanes + 1))
        self._scaled.rotate(-1)
        return np.multiply(counts_NCE, self._before_C1, out=self._scaled[-1][: len(counts_NCE)])

    def infer(self, counts_NCE: Counts) -> Floats:
        """See the port."""
        rate_NCE: Floats = self.base.infer(counts_NCE * self._before_C1) * self._after_C1
        return rate_NCE

    def close(self) -> None:
        """See the port."""
        self.base.close()
