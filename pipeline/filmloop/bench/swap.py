"""Swapping weights at the instrument's rate: what do the frames notice?

Two versions change places as champion as fast as the edge takes them, in stretches with and without swaps that take
turns. Each swap is the whole of it: the alias is seen, the bundle verified, loaded, compiled, compared with its golden
pair beside the running inference, taken between two batches, and compared again on the path that serves.
A site swaps once in ten minutes or more; this asks what one swap does, many times.

- `lost`: frames not inferred, or not exactly once in a sealed shard.
- `mixed`: frames whose stored sort key is nearer to what the other version makes of them than to what the version that
  is stored with them does. Frames of which both make nearly the same are not judged.
- `unverified`: swaps after which the served output was not found to be the golden pair's.
- `p99_ratio`: 99th percentile of the time from a batch's arrival to its result, with swaps / without.
- `p99_ratio_median`: the median of that ratio over the stretches, each beside the pause after it: one stall of the machine cannot make it.
- `p99_growth`: the 99th percentile in the last tenth of the swaps / in the first.

Shape suffixes: N frames.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.bench.running import POOL_FRAMES, RunningEdge, ShardChecker, bench_site, pool_NCE
from filmloop.edge.latency import counts_between, percentiles_ms
from filmloop.edge.runtimes.make import make_runtime
from filmloop.edge.status import EdgeStatus
from filmloop.ports.registry import CHAMPION
from filmloop.staging.reader import ShardReader

STRETCHES = 10
_APART_RAD = 0.5
"""Keys of the two versions that differ by less say nothing; bfloat16 moves a key by a few hundredths."""
_TELL_S = 0.25
_QUIET_S = 10.0
_BATCH_FRAMES = 256


class KeyChecker(ShardChecker):
    """Judges every frame's key too.

    Args:
        stage: Folder of the shards.
        phases: Of each version, the sort key that it makes of each pool frame.
    """

    def __init__(self, stage: Path, phases: dict[int, npt.NDArray[np.float32]]) -> None:
        super().__init__(stage)
        self.judged = self.mixed = self.unknown = 0
        self._phases = phases

    def judge(self, reader: ShardReader) -> None:
        """See the base."""
        super().judge(reader)
        version_N, phase_N = reader.version_N, reader.phase_N
        rows_N = reader.pulse_id_N.astype(np.int64) % POOL_FRAMES
        first_N, second_N = (self._phases[version][rows_N] for version in (1, 2))
        own_N, other_N = np.where(version_N == 1, first_N, second_N), np.where(version_N == 1, second_N, first_N)
        told_N = (_apart(own_N, other_N) > _APART_RAD) & np.isfinite(phase_N)
        self.unknown += int((~np.isin(version_N, (1, 2))).sum())
        self.judged += int(told_N.sum())
        self.mixed += int((told_N & (_apart(phase_N, own_N) > _apart(phase_N, other_N))).sum())


def measure(swaps: int, folder: Path, *, rate_hz: float = 100_000.0) -> dict[str, Any]:
    """Swap `swaps` times while frames come at `rate_hz`."""
    site = bench_site(folder, rate_hz=rate_hz, edge={"watch_every_s": 0.05, "status_every_s": 0.1})
    edge = RunningEdge(site, folder, seeds=(1, 2), watched=True)
    checker = KeyChecker(site.home.stage, phases_of(edge))
    asked = [len(each) for each in np.array_split(range(max(swaps, STRETCHES)), STRETCHES)]
    swapping: list[list[int]] = []
    quiet: list[list[int]] = []
    memory_mb: list[float] = []
    with edge:
        checker.start()
        time.sleep(1.0)
        begun = edge.status().swaps
        begun_s = time.monotonic()
        swapping_s = 0.0
        for each in asked:
            stretch_s, counts = _stretch(edge, each)
            swapping.append(counts)
            memory_mb.append(round(sum(edge.rss_mb().values()), 1))
            swapping_s += stretch_s
            before = _counts(edge)
            time.sleep(min(stretch_s, _QUIET_S))
            quiet.append(counts_between(_counts(edge), before))
        took_s = time.monotonic() - begun_s
        status = edge.status()
    checker.finish()
    accounting = edge.accounting
    lost = checker.lost(accounting)
    p99_with, p99_without = _p99(swapping), _p99(quiet)
    with_each, without_each = ([_p99([counts]) for counts in stretches] for stretches in (swapping, quiet))
    done = status.swaps - begun
    return {
        "swaps": done,
        "lost": lost,
        "mixed": checker.mixed + checker.unknown,
        "judged": checker.judged,
        "frames_in": accounting.frames_in,
        "unverified": sum(asked) - done + status.swaps_refused,
        "p99_ms": p99_with,
        "p99_ms_without": p99_without,
        "p99_ratio": round(p99_with / p99_without, 2),
        "p99_ratio_median": round(statistics.median(a / b for a, b in zip(with_each, without_each, strict=True)), 2),
        "p99_ms_stretches": with_each,
        "p99_ms_without_stretches": without_each,
        "p99_growth": round(_p99(swapping[-1:]) / _p99(swapping[:1]), 2),
        "p50_ms": _percentile(swapping, 0),
        "p50_ms_without": _percentile(quiet, 0),
        "p999_ms": _percentile(swapping, 2),
        "p999_ms_without": _percentile(quiet, 2),
        "rss_mb": memory_mb,
        "swaps_per_s": round(done / swapping_s, 2),
        "rate_hz": round(rate_hz),
        "seconds": round(took_s, 1),
        "runtime": status.runtime,
        "unstaged": dict(accounting.frames_unstaged),
        "dropped": dict(accounting.frames_dropped),
    }


def _stretch(edge: RunningEdge, swaps: int) -> tuple[float, list[int]]:
    before, begun_s = _counts(edge), time.monotonic()
    for _ in range(swaps):
        status = edge.status()
        wanted, count = ("2" if status.version == "1" else "1"), status.swaps
        edge.registry.set_alias(CHAMPION, wanted)
        edge.wait_for(partial(_is_live, wanted, count))
    return time.monotonic() - begun_s, counts_between(_counts(edge), before)


def _is_live(version: str, swaps: int, status: EdgeStatus) -> bool:
    return status.version == version and status.swaps > swaps


def _counts(edge: RunningEdge) -> dict[str, int]:
    time.sleep(_TELL_S)  # the counts are told five times a second
    return edge.status().latency_counts


def _percentile(stretches: list[list[int]], which: int) -> float:
    return percentiles_ms(np.sum(stretches, axis=0).tolist())[which]


def _p99(stretches: list[list[int]]) -> float:
    return _percentile(stretches, 1)


def phases_of(edge: RunningEdge) -> dict[int, npt.NDArray[np.float32]]:
    """The keys that each version makes of the pool, by the runtime that serves and nothing else around it."""
    counts_NCE, phases = pool_NCE(), {}
    for version, bundle in enumerate(edge.bundles, start=1):
        runtime = make_runtime(
            edge.runtime_name, bundle, version=str(version), frame_shape=(16, 128), batch_frames=_BATCH_FRAMES
        )
        parts = [counts_NCE[start : start + _BATCH_FRAMES] for start in range(0, POOL_FRAMES, _BATCH_FRAMES)]
        phases[version] = np.concatenate([runtime.start(part_NCE).result().phase_N.copy() for part_NCE in parts])
        runtime.close()
    return phases


def _apart(left_N: npt.NDArray[np.float32], right_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The angle between two keys, rad."""
    turned_N = (left_N - right_N + np.pi) % (2 * np.pi) - np.pi
    apart_N: npt.NDArray[np.float32] = np.abs(turned_N)
    return apart_N
