"""The edge for minutes at a steady rate below its highest: nothing may be lost, no memory may grow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from filmloop.bench.running import RunningEdge, ShardChecker, bench_site
from filmloop.edge.latency import counts_between, percentiles_ms

_LOOKS = 20


def measure(seconds: float, folder: Path, *, rate_hz: float) -> dict[str, Any]:
    """Run the edge at `rate_hz` for `seconds`.

    Returns:
        `frames_in`, `lost`, memory of each stage in MB at even distances, `growth` of their sum over the second half,
        latencies, and restarts of stages.
    """
    site = bench_site(folder, rate_hz=rate_hz)
    checker = ShardChecker(site.home.stage)
    memory: list[dict[str, float]] = []
    with RunningEdge(site, folder) as edge:
        checker.start()
        before = edge.status()
        for _ in range(_LOOKS):
            time.sleep(seconds / _LOOKS)
            memory.append({role: round(value, 1) for role, value in edge.rss_mb().items()})
        status = edge.status()
    checker.finish()
    accounting = edge.accounting
    totals = [sum(each.values()) for each in memory]
    p50_ms, p99_ms, p999_ms = percentiles_ms(counts_between(status.latency_counts, before.latency_counts))
    return {
        "seconds": seconds,
        "rate_hz": rate_hz,
        "frames_in": accounting.frames_in,
        "lost": checker.lost(accounting),
        "dropped": dict(accounting.frames_dropped),
        "unstaged": dict(accounting.frames_unstaged),
        "rss_mb": {role: [each[role] for each in memory] for role in memory[0]},
        "growth": round(totals[-1] / totals[len(totals) // 2], 3),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "p999_ms": p999_ms,
        "restarts": dict(status.restarts),
        "runtime": status.runtime,
    }
