"""How good the live weights are and what the detector looks like, told without labels from a sample of the stream.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from filmloop.config.schema import EdgeSection
from filmloop.core.documents import HoldoutPolicy
from filmloop.core.poisson import poisson_nll, thin_by_hash
from filmloop.core.types import FrameBlock
from filmloop.edge.status import InputStatistics, Quality
from filmloop.ports.runtime import InferenceRuntime

# One small inference for many sampled frames: single frames would cost ten times as much each.
SCORED_FRAMES, _WAIT_S = 32, 1.0
_DEAD_SHARE = 0.02
"""A channel with less than this share of the median channel's counts is called dead; noise alone leaves 2 to 5 %."""


class QualityMonitor:
    """Thins every n-th frame, has the live weights predict the part they did not see, keeps a running mean.

    At most `quality_hz` frames a second are scored, 60 us each: at full rate that is 2 % of a core.
    A sampled frame of which the weights make rates that are not finite is left out of the mean.

    Args:
        edge: How many frames to sample and to average over.
        holdout: How to thin; the same split as the gate's.
        frame_shape: (C, E).
        observe: Told of every batch of scored frames: their counts (N, C, E) and NLL (N,).

    Attributes:
        unfit: Sampled frames left out since the weights changed.
    """

    def __init__(
        self,
        edge: EdgeSection,
        holdout: HoldoutPolicy,
        frame_shape: tuple[int, int],
        *,
        observe: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float64]], None] | None = None,
    ) -> None:
        self.unfit, self._observe = 0, observe
        self._every, self._keep, self._seed = edge.quality_every, holdout.keep, holdout.seed
        self._hz, self._pause_s = edge.quality_hz, 0.0
        self._scores: deque[tuple[float, float, float]] = deque(maxlen=edge.quality_window_frames)
        self._mean_weight = 1.0 / edge.quality_window_frames
        self._mean_CE: npt.NDArray[np.float64] | None = None
        self._energy_E = np.arange(frame_shape[1])
        self._skip = 0
        self._waiting: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]] = []
        self._waiting_frames, self._waiting_since_s, self._scored_s = 0, 0.0, 0.0

    def reset(self) -> None:
        """Begin anew: the weights have changed."""
        self._scores.clear()
        self.unfit = 0

    def take(self, block: FrameBlock) -> None:
        """Copy the sampled frames of `block`, if it is time for any."""
        first, self._skip = self._skip, (self._skip - len(block)) % self._every
        if self._waiting_frames >= SCORED_FRAMES or time.monotonic() < self._scored_s + self._pause_s:
            return
        sample = block[first :: self._every]
        if not len(sample):
            return
        if not self._waiting:
            self._waiting_since_s = time.monotonic()
        self._waiting.append((sample.counts_NCE.copy(), sample.pulse_id_N.copy()))
        self._waiting_frames += len(sample)

    def score(self, runtime: InferenceRuntime) -> Quality | None:
        """Score the frames taken, if they are enough; returns the new quality."""
        waited_s = time.monotonic() - self._waiting_since_s
        if not self._waiting or (self._waiting_frames < SCORED_FRAMES and waited_s < _WAIT_S):
            return None
        counts_NCE, pulse_id_N = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        # A read of a fast source brings many sampled frames at once; they earn a longer pause.
        self._waiting_frames, self._scored_s, self._pause_s = 0, time.monotonic(), len(counts_NCE) / self._hz
        self._score(counts_NCE, pulse_id_N, runtime)
        return self._quality(runtime.version) if self._scores else None

    def input_statistics(self) -> InputStatistics | None:
        """What the sampled frames looked like, per channel; None before the first."""
        if self._mean_CE is None:
            return None
        hits_C = self._mean_CE.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            centre_C = self._mean_CE @ self._energy_E / hits_C
        dead_C = hits_C < _DEAD_SHARE * np.median(hits_C)
        return InputStatistics(
            hits_per_channel=tuple(hits_C.round(3).tolist()),
            centre_per_channel=tuple(np.nan_to_num(centre_C, nan=-1.0).round(2).tolist()),
            dead_channels=tuple(np.flatnonzero(dead_C).tolist()),
        )

    def _score(
        self, counts_NCE: npt.NDArray[np.uint8], pulse_id_N: npt.NDArray[np.uint64], runtime: InferenceRuntime
    ) -> None:
        keep = self._keep
        seen_NCE = thin_by_hash(counts_NCE, pulse_id_N, keep=keep, seed=self._seed)
        hidden_NCE = counts_NCE - seen_NCE
        rate_NCE = runtime.infer(seen_NCE.astype(np.float32) / np.float32(keep))
        mean_CE = counts_NCE.mean(axis=0) if self._mean_CE is None else self._mean_CE
        constant_N = poisson_nll(np.broadcast_to(mean_CE * (1 - keep), counts_NCE.shape), hidden_NCE)
        weight = min(1.0, self._mean_weight * len(counts_NCE))
        self._mean_CE = mean_CE + weight * (counts_NCE.mean(axis=0) - mean_CE)
        hits_N = counts_NCE.reshape(len(counts_NCE), -1).sum(axis=1, dtype=np.int64)
        fit_N = np.asarray(np.isfinite(rate_NCE).all(axis=(1, 2)))
        self.unfit += int((~fit_N).sum())
        fit_NCE = np.where(fit_N[:, None, None], rate_NCE, np.float32(0))
        nll_N = poisson_nll(fit_NCE * np.float32(1 - keep), hidden_NCE)
        self._scores.extend(zip(nll_N[fit_N].tolist(), constant_N[fit_N].tolist(), hits_N[fit_N].tolist(), strict=True))
        if self._observe is not None:
            self._observe(counts_NCE[fit_N], nll_N[fit_N])

    def _quality(self, version: str) -> Quality:
        nll, constant, hits = np.mean(self._scores, axis=0).tolist()
        return Quality(version=version, frames=len(self._scores), nll=nll, nll_constant=constant, hits_per_frame=hits)
