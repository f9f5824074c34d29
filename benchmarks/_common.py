"""What every benchmark shares: its options, the machine it ran on, and the one JSON line it prints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filmloop.bootstrap import code_commit

CHECKOUT = Path(__file__).resolve().parents[1]


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; add your own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works; its numbers mean nothing")
    parser.add_argument("--folder", type=Path, help="where to write; a disk, not a tmpfs (default: the system's temp)")
    return parser


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder for the block, empty before and gone after it."""
    with tempfile.TemporaryDirectory(prefix="filmloop-bench-", dir=folder) as name:
        yield Path(name)


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def _busy_s() -> tuple[float, float]:
    """CPU seconds since boot that this machine was busy, and those of them that we and our ended children used."""
    ours_s = sum(os.times()[:4])
    try:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
            int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        )
    except OSError:
        return ours_s, ours_s
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), ours_s


def others_cores(since: tuple[float, tuple[float, float]]) -> float:
    """How many cores others kept busy since `mark()`; above 0.2 or so, measure again.

    What our ended children used is ours; a process that outlives the one that started it counts as others.
    """
    begun_s, then = since
    busy_s, ours_s = (now - before for now, before in zip(_busy_s(), then, strict=True))
    return round(max(busy_s - ours_s, 0.0) / (time.monotonic() - begun_s), 2)


def mark() -> tuple[float, tuple[float, float]]:
    """Now, for `others_cores`."""
    return time.monotonic(), _busy_s()


_BEGIN = mark()


def report(
    benchmark: str, values: dict[str, Any], *, packages: Sequence[str], quick: bool, others: float | None = None
) -> None:
    """Print the result as one JSON line on stdout.

    Args:
        benchmark: Its name.
        values: What was measured.
        packages: Whose versions matter to it.
        quick: Whether `--quick` was given, so that nobody quotes such a line.
        others: Cores that others kept busy, if `others_cores` cannot tell; None takes it from the start of the process.
    """
    line = {
        "benchmark": benchmark,
        **values,
        "quick": quick,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": {**_machine(), "others_cores": others_cores(_BEGIN) if others is None else others},
        "versions": {"filmloop": code_commit(), "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }
    print(json.dumps(line), flush=True)


def median(values: Sequence[float], digits: int = 3) -> float:
    """The median, rounded."""
    return round(statistics.median(values), digits)


def spread(values: Sequence[float], digits: int = 3) -> list[float]:
    """Smallest and largest, rounded: with a few rounds that says more than a standard deviation."""
    return [round(min(values), digits), round(max(values), digits)]


def _machine() -> dict[str, Any]:
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.system()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
