"""What a retraining cycle costs beside the training itself, on the local default in a state folder of its own.

`filmloop retrain --json` as a person would run it: a registry server on a free port, an edge for the time of the
cycle, torchrun with two ranks. The first cycle is cold (empty folder, no server), the following ones are warm. Short
trainings, because only the rest is of interest; its peer is the training of the site's default length.

- `overhead_*_s`: setup and all steps, without the training loop, as the cycle's report says.
- `wall_*_s`: the whole command, with the start of Python and the wait for enough frames from a 2 kHz detector.
- `overhead_to_training`: warm overhead / the training loop of a default cycle.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from filmloop.adapters.mlflow.server import stop_server
from filmloop.bench.report import Machine
from filmloop.config.loader import load_site
from filmloop.config.paths import Home
from filmloop.testing.mlflow_server import free_port

SITE = Path(__file__).resolve().parents[1] / "site_configs/local.toml"


def retrain(home: Path, sets: list[str]) -> tuple[dict[str, Any], float]:
    """One cycle in a process of its own; returns its report and the seconds that the command took."""
    argv = [sys.executable, "-m", "filmloop.cli", "retrain", "--site", str(SITE), "--json"]
    argv += [word for pair in sets for word in ("--set", pair)]
    begun_s = time.monotonic()
    done = subprocess.run(
        argv, env={**os.environ, "FILMLOOP_HOME": str(home)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    took_s = time.monotonic() - begun_s
    if done.returncode:
        raise SystemExit(f"retrain exited with {done.returncode}: {done.stdout.decode()}")
    cycle = json.loads(done.stdout)
    if cycle["overhead_s"] is None:
        raise SystemExit(f"the cycle did not train: {cycle['message']}")
    told = f"{cycle['outcome']}: {took_s:.1f} s in all, overhead {cycle['overhead_s']:.1f} s, {cycle['steps']}"
    print(told, file=sys.stderr, flush=True)
    return cycle, took_s


def median_steps(cycles: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each step; `train` without the training loop is starting ranks, evaluation and bundle."""
    steps = {
        name: median([cycle["steps"][name] for cycle in cycles if name in cycle["steps"]]) for name in _names(cycles)
    }
    loop_s = median([cycle["train_s"] for cycle in cycles])
    return {**steps, "train_without_loop": round(steps["train"] - loop_s, 3)}


def _names(cycles: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for cycle in cycles for name in cycle["steps"]))


def median(values: list[float], digits: int = 3) -> float:
    return round(statistics.median(values), digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works; its numbers mean nothing")
    parser.add_argument("--folder", type=Path, help="where to write; a disk, not a tmpfs (default: the system's temp)")
    parser.add_argument("--warm", type=int, default=2, help="warm cycles; the median counts")
    args = parser.parse_args()
    train_s, warm = (1, 1) if args.quick else (10, args.warm)
    sets = [f"training.hyper.train_s={train_s}", f"registry.port={free_port()}"]
    if args.quick:
        sets += ["training.min_frames=2000", "training.holdout.max_frames=300", "launcher.processes=1"]
    # Before, not during: the edge, the server and the ranks are processes that others_cores cannot tell from others.
    machine = Machine()
    time.sleep(2.0)
    others = machine.others_cores()
    with tempfile.TemporaryDirectory(prefix="filmloop-bench-", dir=args.folder) as folder:
        home = Path(folder) / "home"
        try:
            cycles = [retrain(home, sets) for _ in range(1 + warm)]
        finally:
            stop_server(Home(home))
    (cold, cold_wall_s), later = cycles[0], cycles[1:]
    reports = [cycle for cycle, _ in later]
    overhead_warm_s = median([cycle["overhead_s"] for cycle in reports], 2)
    default_s = load_site(SITE).training.hyper.train_s
    values = {
        "overhead_cold_s": round(cold["overhead_s"], 2),
        "overhead_warm_s": overhead_warm_s,
        "overhead_to_training": round(overhead_warm_s / default_s, 3),
        "default_train_s": default_s,
        "wall_cold_s": round(cold_wall_s, 2),
        "wall_warm_s": round(statistics.median(wall_s for _, wall_s in later), 2),
        "turnaround_warm_s": [cycle["turnaround_s"] for cycle in reports],
        "train_s": median([cycle["train_s"] for cycle in reports], 2),
        "steps_cold": median_steps([cold]),
        "steps_warm": median_steps(reports),
        "outcomes": [cycle["outcome"] for cycle, _ in cycles],
        "warm_cycles": warm,
    }
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    line = machine.report("cycle", values, command=command, quick=args.quick, packages=("torch", "mlflow", "zarr"))
    line["machine"]["others_cores"] = others
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
