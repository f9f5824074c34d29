"""How far the edge's rates are from the truth, over time. Only a simulation knows; the loop itself never looks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmloop.core.poisson import RATE_FLOOR
from filmloop.demo.cue import CuedSimulator
from filmloop.edge.service import EdgeResult

_SAMPLE_FRAMES = 32
_SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the edge. `loss` is the mean Kullback-Leibler divergence of the served rates, nats a frame."""

    at_s: float
    version: str
    loss: float


class TruthWatch:
    """Takes a sample of the edge's results a few times a second; hand it to the service as `on_result`."""

    def __init__(self, source: CuedSimulator) -> None:
        self._source = source
        self._begun_s = time.monotonic()
        self._next_s = 0.0
        self._mutex = threading.Lock()
        self._taken: list[tuple[float, str, npt.NDArray[np.uint64], npt.NDArray[np.float32]]] = []
        self._samples: list[Sample] = []

    def now_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._begun_s

    def __call__(self, result: EdgeResult) -> None:
        """Keep a copy of some frames; the comparison is made later, outside the inference thread."""
        now_s = self.now_s()
        if result.rate_NCE is None or now_s < self._next_s or not len(result.pulse_id_N):
            return
        self._next_s = now_s + _SAMPLE_EVERY_S
        part = slice(0, _SAMPLE_FRAMES)
        with self._mutex:
            self._taken.append((now_s, result.version, result.pulse_id_N[part].copy(), result.rate_NCE[part].copy()))

    def samples(self) -> list[Sample]:
        """All samples so far, compared with the truth."""
        with self._mutex:
            taken, self._taken = self._taken, []
        truth = self._source.truth() if taken else None
        for at_s, version, pulse_id_N, rate_NCE in taken:
            assert truth is not None
            true_NCE = truth.frames(int(pulse_id_N[0]), len(pulse_id_N), truth=True).rate_NCE
            assert true_NCE is not None
            self._samples.append(Sample(at_s=at_s, version=version, loss=divergence(true_NCE, rate_NCE)))
        return list(self._samples)

    def loss_since(self, begin_s: float) -> float:
        """Mean loss of the samples taken after `begin_s`; NaN without any."""
        losses = [sample.loss for sample in self.samples() if sample.at_s >= begin_s]
        return float(np.mean(losses)) if losses else float("nan")


def divergence(true_NCE: npt.NDArray[np.float32], rate_NCE: npt.NDArray[np.float32]) -> float:
    """Mean Poisson Kullback-Leibler divergence KL(true || rate) of a frame, nats: what the wrong rates cost."""
    true, rate = np.maximum(true_NCE, RATE_FLOOR), np.maximum(rate_NCE, RATE_FLOOR)
    return float((rate - true + true * np.log(true / rate)).sum(axis=(1, 2)).mean())
