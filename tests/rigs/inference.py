"""Networks that multiply, a store of them, and a ring that is filled as the source does: for tests of inference.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time

import numpy as np

from filmloop.edge.gentle import AT_ONCE
from filmloop.edge.models import Proven
from filmloop.ports.runtime import Inferred, Wanted
from filmloop.testing.edge import pool
from filmloop_models.catalog import get as get_model

GOLDEN_NCE = pool()[:8]
SORT_KEY = get_model("mixer").sort_key


class Gain:
    """A network that multiplies; its batches take as long as they are told to."""

    name, batch_frames, most_frames = "gain", 32, 32

    def __init__(self, version, gain, *, lanes=1, served=None, turned=0.0, pause_s=0.0):
        self.turned = turned
        self.version, self.gain, self.lanes, self.pause_s = version, gain, lanes, pause_s
        self.served = gain if served is None else served
        self.started, self.closed = [], 0

    def infer(self, counts_NCE):
        return np.asarray(counts_NCE, np.float32) * np.float32(self.gain)

    def start(self, counts_NCE, *, dense=False, surprise=False):
        if isinstance(self.served, Exception):
            raise self.served
        assert not self.closed, "frames for a runtime that is closed"
        self.started.append(len(counts_NCE))
        return Batch(self, counts_NCE, dense)

    def close(self):
        self.closed += 1


class Batch:
    def __init__(self, runtime, counts_NCE, dense):
        self.runtime, self.counts_NCE, self.dense = runtime, counts_NCE, dense

    def result(self):
        time.sleep(self.runtime.pause_s)
        assert not self.runtime.closed, "a result of a runtime that is closed"
        rate_NCE = self.counts_NCE.astype(np.float32) * np.float32(self.runtime.served)
        phase_N = SORT_KEY(rate_NCE) + np.float32(self.runtime.turned)
        return Inferred(phase_N=phase_N, rate_NCE=rate_NCE if self.dense else None)


def proven(runtime):
    """As the store proves: by `infer`, which a liar answers truly."""
    return Proven(
        runtime=runtime,
        digest=f"d{runtime.version}",
        counts_NCE=GOLDEN_NCE,
        golden_NCE=runtime.infer(GOLDEN_NCE),
        tolerance=1e-3,
    )


class Store:
    """A model store with nothing in it but what the test says."""

    wanted = Wanted(dense=True)

    def __init__(self, live=None, versions=()):
        self.live, self.versions = live, {version.runtime.version: version for version in versions}
        self.remembered_as = []

    def remembered(self):
        if isinstance(self.live, Exception):
            raise self.live
        return self.live

    def fetch(self, registry, info, pace=AT_ONCE):
        return self.versions[info.version]

    def remember(self, version, digest):
        self.remembered_as.append(version)


def feed(ring, head, frames, counts_NCE=None):
    """Put frames in behind `head`; returns where the next one goes."""
    ids = np.arange(head, head + frames)
    at = ids % ring.frames
    ring.pulse_id_F[at], ring.counts_FCE[at] = ids, (pool() if counts_NCE is None else counts_NCE)[ids % 64]
    ring.run_number_F[at], ring.arrived_ns_F[at] = 1, time.monotonic_ns()
    ring.source.write({**ring.source.read(), "head": head + frames})
    ring.bells[ring.serving].ring()
    return head + frames
