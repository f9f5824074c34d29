"""Swapping weights at full speed: what do the frames notice?

Two real bundles change places as champion as fast as the edge takes them, in stretches with and without swaps that
take turns within one service. Each swap is the whole of it: the alias is seen, the bundle verified, loaded, warmed up
and compared with its golden pair beside the running inference, then taken between two batches.
A site swaps once in ten minutes or more; this asks what one swap does, many times.

- `lost`: frames not inferred, or not exactly once in a sealed shard.
- `mixed`: frames whose rates are not those of the version that the result names, or whose shard names another one.
  Every frame of every batch is checked, by eight random projections of its rates.
- `p99_ratio`: 99th percentile of the time from a batch's arrival to its result, with swaps / without.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _common import median, options, report, say, scratch
from _stream import PoolSource, draw_pool, lost_frames, registry_of, remember_champion, site, staged_versions

from filmloop.config.paths import Home
from filmloop.core.documents import Accounting
from filmloop.edge.runtimes import use_threads
from filmloop.edge.service import EdgeResult, EdgeService
from filmloop.ports.registry import CHAMPION
from filmloop.testing.fakes import MemoryRegistry
from filmloop.training.load import load_module

VERSIONS = ("1", "2")
PROJECTIONS = 8
# Rounding differs with a batch's length, by some 1e-5 of a projection; the two versions must lie ten times as far apart.
TOLERANCE = 1e-2


class Judge:
    """Looks at every result: which version made it, is it that version's, how long did it take.

    Args:
        source: Says when the batch was handed over.
        expected: For each version, the projections of its rates of every pool frame, float32 (N, PROJECTIONS).
        directions: What rates are projected on, float32 (C * E, PROJECTIONS).
    """

    def __init__(
        self, source: PoolSource, expected: dict[str, npt.NDArray[np.float32]], directions: npt.NDArray[np.float32]
    ) -> None:
        self.latency_s: dict[bool, list[float]] = {False: [], True: []}
        self.swapping, self.version, self.mixed = False, "", 0
        self.batches: list[tuple[int, str]] = []
        self._source, self._expected, self._directions = source, expected, directions

    def __call__(self, result: EdgeResult) -> None:
        """See `on_result` of the service."""
        self.latency_s[self.swapping].append(time.monotonic() - self._source.handed_s)
        self.version = result.version
        ids_N, rate_NCE = result.pulse_id_N, result.rate_NCE
        if rate_NCE is None:
            self.mixed += len(ids_N)
            return
        expected = self._expected[result.version]
        seen = rate_NCE.reshape(len(ids_N), -1) @ self._directions
        off_N = np.abs(seen - expected[(ids_N % len(expected)).astype(np.intp)]).max(axis=1)
        # `not <=` is also true for NaN.
        self.mixed += int((~(off_N <= TOLERANCE)).sum())
        self.batches.append((len(ids_N), result.version))

    def p99_ms(self, swapping: bool) -> float:
        """99th percentile of a batch's latency."""
        return float(np.percentile(self.latency_s[swapping], 99) * 1e3)

    def version_N(self) -> npt.NDArray[np.uint32]:
        """Version of every frame in order of its arrival, as the results said."""
        frames, versions = zip(*self.batches, strict=True)
        return np.repeat(np.array([int(version) for version in versions], np.uint32), frames)


def project(
    folder: Path, pool_NCE: npt.NDArray[np.uint8], directions: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """What the weights of a bundle make of every pool frame, projected: (N, PROJECTIONS)."""
    module, parts = load_module(folder).eval(), []
    with torch.inference_mode():
        for start in range(0, len(pool_NCE), 256):
            rate_NCE = module(torch.from_numpy(pool_NCE[start : start + 256]).float()).numpy()
            parts.append(rate_NCE.reshape(len(rate_NCE), -1) @ directions)
    return np.concatenate(parts)


def wait_for(judge: Judge, version: str) -> None:
    """Wait until a result is of `version`."""
    end_s = time.monotonic() + 30
    while judge.version != version:
        if time.monotonic() > end_s:
            raise SystemExit(f"no result of version {version} within 30 s")
        time.sleep(0.001)


def swap_for(seconds: float, registry: MemoryRegistry, judge: Judge) -> list[float]:
    """Make the other version champion whenever the last one has arrived; returns seconds from alias to first result."""
    took: list[float] = []
    end_s = time.monotonic() + seconds
    judge.swapping = True
    while time.monotonic() < end_s:
        wanted = VERSIONS[judge.version == VERSIONS[0]]
        begun_s = time.monotonic()
        registry.set_alias(CHAMPION, wanted)
        wait_for(judge, wanted)
        took.append(time.monotonic() - begun_s)
    judge.swapping = False
    return took


@contextmanager
def running(service: EdgeService, outcome: list[Accounting]) -> Iterator[None]:
    """The service in a thread of its own; what it returns is put into `outcome`."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: outcome.append(service.run(stop)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def counting(source: PoolSource, rate_hz: list[float]) -> Iterator[None]:
    """Add the frames a second of the block to `rate_hz`."""
    frames, begun_s = source.delivered, time.monotonic()
    yield
    rate_hz.append((source.delivered - frames) / (time.monotonic() - begun_s))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds, stretch_s = (1, 1.0) if args.quick else (args.rounds, 2.0)
    config = site(watch_every_s=0.01)
    use_threads(config.edge.threads)
    pool_NCE = draw_pool(config)
    source, outcome, took_s = PoolSource(pool_NCE), [], []
    rate_hz: dict[bool, list[float]] = {False: [], True: []}
    directions = np.random.default_rng(3).normal(size=(pool_NCE[0].size, PROJECTIONS)).astype(np.float32)
    with scratch(args.folder) as folder:
        registry, home = registry_of(folder, seeds=(1, 2)), Home(folder / "home")
        expected = {version: project(folder / f"bundle-{version}", pool_NCE, directions) for version in VERSIONS}
        apart = float(np.abs(expected["1"] - expected["2"]).max(axis=1).min())
        say(f"projections of the two versions are at least {apart:.3g} apart, tolerance {TOLERANCE:g}")
        if apart < 10 * TOLERANCE:
            raise SystemExit("the two versions are too much alike to tell a mixture")
        remember_champion(config, home, registry)
        judge = Judge(source, expected, directions)
        service = EdgeService(config=config, home=home, source=source, registry=lambda: registry, on_result=judge)
        with running(service, outcome):
            wait_for(judge, VERSIONS[0])
            for number in range(rounds):
                with counting(source, rate_hz[False]):
                    time.sleep(stretch_s)
                with counting(source, rate_hz[True]):
                    took_s += swap_for(stretch_s, registry, judge)
                say(f"round {number}: {len(took_s)} swaps, {source.delivered:,} frames")
        accounting = outcome[0]
        ids_N, version_N = staged_versions(home)
    lost = lost_frames(ids_N, source.delivered, accounting)
    mislabelled = int((version_N != judge.version_N()[ids_N.astype(np.intp)]).sum())
    p99_with, p99_without = judge.p99_ms(True), judge.p99_ms(False)
    values = {
        "swaps": len(took_s),
        "lost": lost,
        "mixed": judge.mixed + mislabelled,
        "p99_ratio": round(p99_with / p99_without, 3),
        "p99_with_swaps_ms": round(p99_with, 2),
        "p99_without_ms": round(p99_without, 2),
        "p50_with_swaps_ms": round(float(np.median(judge.latency_s[True]) * 1e3), 2),
        "p50_without_ms": round(float(np.median(judge.latency_s[False]) * 1e3), 2),
        "max_with_swaps_ms": round(max(judge.latency_s[True]) * 1e3, 2),
        "alias_to_first_result_ms": round(float(np.median(took_s)) * 1e3, 1),
        "rate_with_swaps_hz": median(rate_hz[True], 0),
        "rate_without_hz": median(rate_hz[False], 0),
        "frames": source.delivered,
        "batches_with_swaps": len(judge.latency_s[True]),
        "threads": config.edge.threads,
        "rounds": rounds,
    }
    report("swap", values, packages=("torch", "zarr", "numpy"), quick=args.quick)


if __name__ == "__main__":
    main()
