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


def report(benchmark: str, values: dict[str, Any], *, packages: Sequence[str], quick: bool) -> None:
    """Print the result as one JSON line on stdout.

    Args:
        benchmark: Its name.
        values: What was measured.
        packages: Whose versions matter to it.
        quick: Whether `--quick` was given, so that nobody quotes such a line.
    """
    line = {
        "benchmark": benchmark,
        **values,
        "quick": quick,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": _machine(),
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
    """The processor, and the load at the end: the benchmark's own included, about its threads on a quiet machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
