"""How long a frame waits for its result, at rates below what the edge can do: a rate is not a latency."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from filmloop.bench.running import RunningEdge, bench_site
from filmloop.edge.latency import counts_between, percentiles_ms
from filmloop.edge.tally import neither

RATES_HZ = (1_000, 10_000, 50_000)
BUDGETS_MS = (2.0, 20.0)
_SETTLE_S = 2.0


def measure(seconds: float, folder: Path) -> dict[str, Any]:
    """Run the edge at each rate and latency budget for `seconds`.

    Returns:
        For each: p50, p99 and p99.9 in ms from a batch's oldest frame at the door to its result in the ring, frames in
        and frames not inferred or not staged.
    """
    results = []
    for budget_ms in BUDGETS_MS:
        for rate_hz in RATES_HZ:
            where = folder / f"{rate_hz}-{budget_ms:g}"
            where.mkdir()
            results.append(_measure_one(where, float(rate_hz), budget_ms, seconds))
    return {"seconds_each": seconds, "latency": results}


def _measure_one(folder: Path, rate_hz: float, budget_ms: float, seconds: float) -> dict[str, Any]:
    site = bench_site(folder, rate_hz=rate_hz, edge={"latency_budget_ms": budget_ms})
    with RunningEdge(site, folder) as edge:
        time.sleep(_SETTLE_S)
        before = edge.status()
        time.sleep(seconds)
        after = edge.status()
    counts = counts_between(after.latency_counts, before.latency_counts)
    p50_ms, p99_ms, p999_ms = percentiles_ms(counts)
    accounting = edge.accounting
    return {
        "rate_hz": rate_hz,
        "latency_budget_ms": budget_ms,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "p999_ms": p999_ms,
        "batches": sum(counts),
        "frames_in": accounting.frames_in,
        "lost": sum(accounting.frames_dropped.values())
        + sum(accounting.frames_unstaged.values())
        - neither(accounting),
        "runtime": after.runtime,
        "batch_frames": after.choice.batch_frames if after.choice else 0,
    }
