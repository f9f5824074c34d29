"""What every benchmark says beside its figures: the machine, the versions, and how busy others kept it meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filmloop.bootstrap import code_commit
from filmloop.edge.runtimes.machine import cpu_model

PACKAGES = ("torch", "openvino", "onnxruntime", "zarr", "numcodecs", "blosc", "tensorstore", "h5py", "numpy")


class Machine:
    """The machine from now on, for one report."""

    def __init__(self) -> None:
        self._begun_s, self._then = time.monotonic(), _busy_s()

    def others_cores(self) -> float:
        """How many cores others kept busy meanwhile; above 0.2 or so, measure again.

        What our ended children used is ours; a process that outlives the one that started it counts as others.
        """
        busy_s, ours_s = (now - before for now, before in zip(_busy_s(), self._then, strict=True))
        return round(max(busy_s - ours_s, 0.0) / (time.monotonic() - self._begun_s), 2)

    def report(
        self, benchmark: str, values: dict[str, Any], *, command: str, quick: bool, packages: Sequence[str] = PACKAGES
    ) -> dict[str, Any]:
        """The whole line.

        Args:
            benchmark: Its name.
            values: What was measured.
            command: What measures it again.
            quick: Whether it was a mere try, so that nobody quotes such a line.
            packages: Whose versions matter to it.
        """
        return {
            "benchmark": benchmark,
            **values,
            "quick": quick,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": command,
            "machine": {
                "cpu": cpu_model(),
                "cores": len(os.sched_getaffinity(0)),
                "system": platform.system(),
                "others_cores": self.others_cores(),
            },
            "versions": {"filmloop": code_commit(), "python": platform.python_version(), **_versions(packages)},
        }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
