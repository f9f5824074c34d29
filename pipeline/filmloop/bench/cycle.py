"""What a cycle costs beside its training, and how long a drift hurts, on the local default in a state folder of its own.

- cold: `filmloop retrain` in an empty folder, nothing running: it starts edge, registry and warm worker.
- warm: `filmloop retrain --no-edge` beside a running edge, registry and worker, as the units in docs/howto have it.
- recovery: the beam drifts in the simulator; a cycle starts as soon as it has enough frames from after the drift, and
  trains as long as a site does by default.

The other trainings are short, because only the rest is of interest; its peer is the training of the default length.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filmloop.adapters.mlflow.server import stop_server
from filmloop.bench.report import Machine
from filmloop.bootstrap import Site, cycle_parts, open_ledger, open_registry, warm_worker
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.config.schema import SimulatorSource, SiteConfig
from filmloop.core.errors import TransientError
from filmloop.core.fsio import atomic_write_json
from filmloop.core.retry import wait_until
from filmloop.cycle import run_cycle
from filmloop.demo.cue import CuedSimulator
from filmloop.demo.story import DRIFT, running
from filmloop.edge.service import EdgeService
from filmloop.edge.spawn import EdgeProcess
from filmloop.edge.status import EdgeStatus, Quality, read_status
from filmloop.local_loop import fresh_frames
from filmloop.promotion.publish import promote
from filmloop.testing.mlflow_server import free_port

PACKAGES = ("torch", "mlflow", "zarr", "openvino", "onnxruntime")
_DRIFT_FRAMES = 4000
_WINDOW_FRAMES = 128
"""Sampled frames behind one reported quality: 4,096 frames, 2 s at the default rate."""
_PATIENCE_S = 300.0


def measure(folder: Path, *, warm: int, quick: bool = False) -> dict[str, Any]:
    """One cold cycle, `warm` warm ones, one drift and what heals it. `quick` trains too little to heal anything."""
    before, default_s = Machine(), SiteConfig().training.hyper.train_s
    time.sleep(2.0)
    others = before.others_cores()  # before, not during: edge, server and ranks cannot be told from others
    site = _site(folder, quick)
    try:
        cold = _retrain(site)
        _make_champion(site, cold[0])
        with _edge(site):
            later = [_warm_cycle(site) for _ in range(warm)]
        recovery = _recovery(site if quick else _with_train_s(site, default_s))
    finally:
        if (worker := warm_worker(site)) is not None:
            worker.stop()
        stop_server(site.home)
    reports = [report for report, _ in later]
    overhead_warm_s = _median([report["overhead_s"] for report in reports], 2)
    return {
        "overhead_cold_s": round(cold[0]["overhead_s"], 2),
        "overhead_warm_s": overhead_warm_s,
        "overhead_to_training": round(overhead_warm_s / default_s, 3),
        "default_train_s": default_s,
        "wall_cold_s": round(cold[1], 2),
        "wall_warm_s": _median([wall_s for _, wall_s in later], 2),
        "turnaround_warm_s": [report["turnaround_s"] for report in reports],
        "train_s": _median([report["train_s"] for report in reports], 2),
        "steps_cold": _steps([cold[0]]),
        "steps_warm": _steps(reports),
        "outcomes": [report["outcome"] for report, _ in (cold, *later)],
        "warm_cycles": warm,
        "recovery": recovery,
        "others_cores_before": others,
    }


def _site(folder: Path, quick: bool) -> Site:
    values: dict[str, Any] = {
        "home": str(folder / "home"),
        "registry": {"port": free_port()},
        "training": {"hyper": {"train_s": 1.0 if quick else 10.0}},
        "edge": {"quality_window_frames": _WINDOW_FRAMES},
    }
    if quick:
        values["training"] |= {"min_frames": 2000, "holdout": {"max_frames": 300}}
        values["launcher"] = {"processes": 1}
    config, file = parse_site(values), folder / "site.json"
    atomic_write_json(file, config.as_json())
    return Site(file=file, config=config, home=Home(folder / "home"))


def _with_train_s(site: Site, train_s: float) -> Site:
    training = site.config.training
    hyper = training.hyper.model_copy(update={"train_s": train_s})
    training = training.model_copy(update={"hyper": hyper})
    return replace(site, config=site.config.model_copy(update={"training": training}))


def _retrain(site: Site, *words: str) -> tuple[dict[str, Any], float]:
    """One cycle in a process of its own; returns its report and the seconds that the command took."""
    argv = [sys.executable, "-m", "filmloop.cli", "retrain", "--site", str(site.file), "--json", *words]
    environ = {**os.environ, "FILMLOOP_HOME": str(site.home.root)}
    begun_s = time.monotonic()
    done = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    took_s = time.monotonic() - begun_s
    if done.returncode:
        raise TransientError(f"retrain exited with {done.returncode}: {done.stdout.decode()}")
    report = json.loads(done.stdout)
    if report["overhead_s"] is None:
        raise TransientError(f"The cycle did not train: {report['message']}")
    told = f"{report['outcome']}: {took_s:.1f} s in all, overhead {report['overhead_s']:.1f} s, {report['steps']}"
    print(told, file=sys.stderr, flush=True)
    return report, took_s


def _make_champion(site: Site, report: dict[str, Any]) -> None:
    """The first version goes live whatever the gate says of so short a training: a warm cycle needs a champion."""
    if report["outcome"] == "promoted":
        return
    with open_ledger(site) as ledger:
        why = "a benchmark needs a champion"
        registry = open_registry(site, start=False)
        promote(registry, ledger, version=report["version"], expected="", who="bench", why=why)


@contextmanager
def _edge(site: Site) -> Iterator[None]:
    argv = [sys.executable, "-m", "filmloop.cli", "edge", "run", "--site", str(site.file), "--tied"]
    before = os.environ.get("FILMLOOP_HOME")
    os.environ["FILMLOOP_HOME"] = str(site.home.root)
    try:
        edge = EdgeProcess.start(argv, site.home, site.home.edge / "edge.log")
        try:
            _wait(site, lambda status: bool(status.version), "The champion at the edge")
            yield
        finally:
            edge.stop()
    finally:
        os.environ.pop("FILMLOOP_HOME")
        if before is not None:
            os.environ["FILMLOOP_HOME"] = before


def _warm_cycle(site: Site) -> tuple[dict[str, Any], float]:
    with open_ledger(site) as ledger:
        wanted = site.config.training.min_frames
        _wait(site, lambda status: fresh_frames(site, ledger) + status.frames_open >= wanted, "Frames for a cycle")
    return _retrain(site, "--no-edge")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One status, and the seconds at which it was read."""

    at_s: float
    status: EdgeStatus

    @property
    def quality(self) -> Quality | None:
        """Of a whole window of frames that the live version was scored on; None while the window fills."""
        found = self.status.quality
        return found if found and found.version == self.status.version and found.frames >= _WINDOW_FRAMES else None


def _recovery(site: Site) -> dict[str, Any]:
    """Drift, cycle, swap; from the first drifted frame to a whole window that the new version foretells better.

    Better is said of the relative lead over a predictor that knows the mean frame alone, on the same frames: how bright
    the frames of a window happened to be moves the NLL itself by more than a short training gains.
    """
    section = site.config.source
    assert isinstance(section, SimulatorSource)
    source = CuedSimulator(section.model_copy(update={"drift": ()}), site.config.frame_shape)
    with open_ledger(site) as ledger:
        registry = open_registry(site, start=False)
        service = EdgeService(
            config=site.config, home=site.home, source=source, registry=lambda: open_registry(site, start=False),
            may_expire=ledger.may_expire,
        )  # fmt: skip
        with running(service, site.home):
            good = _wait_sample(site, lambda sample: sample.quality is not None, "A whole window of quality")
            source.drift(DRIFT, over_frames=_DRIFT_FRAMES)
            begun_s, first = time.monotonic(), _status(site).frames_in
            enough = first + _DRIFT_FRAMES + site.config.training.min_frames
            bad = _wait_sample(site, lambda sample: sample.status.frames_in >= enough, "Frames of the drifted beam")
            cycle_s = time.monotonic() - begun_s
            report = run_cycle(cycle_parts(site, ledger, registry), tell=lambda step, text: None)
            result: dict[str, Any] = {
                "outcome": report.outcome, **_told("before", good), **_told("drifted", bad), **_told("recovered", None),
                "recovered_s": None, "recovered_frames": None, "cycle_began_s": round(cycle_s, 2),
                "cycle_s": round(sum(report.steps.values()), 2), "train_s": report.train_s, "swapped_s": None,
            }  # fmt: skip
            if report.outcome != "promoted":
                return result
            result["swapped_s"] = round(time.monotonic() - begun_s, 2)
            healed = _wait_sample(
                site,
                lambda s: s.status.version == report.version and s.quality is not None,
                "The quality of the new version",
            )
            result |= _told("recovered", healed)
            # Of a window that began after the swap: without a better model it would be what it was.
            if result["lead_drifted"] is not None and result["lead_recovered"] > result["lead_drifted"]:
                result["recovered_s"] = round(healed.at_s - begun_s, 2)
                result["recovered_frames"] = healed.status.frames_in - first
            return result


def _told(when: str, sample: _Sample | None) -> dict[str, float | None]:
    """The NLL, nats a frame; and the lead over the mean frame, as a share of that one's NLL."""
    quality = None if sample is None else sample.quality
    if quality is None:
        return {f"nll_{when}": None, f"lead_{when}": None}
    lead = (quality.nll_constant - quality.nll) / max(abs(quality.nll_constant), 1e-9)
    return {f"nll_{when}": quality.nll, f"lead_{when}": round(lead, 4)}


def _status(site: Site) -> EdgeStatus:
    status = read_status(site.home)
    assert status is not None, "the edge runs"
    return status


def _wait(site: Site, wanted: Callable[[EdgeStatus], bool], what: str) -> None:
    wait_until(lambda: wanted(_status(site)) or None, deadline_s=_PATIENCE_S, what=what, cap_s=0.1)


def _wait_sample(site: Site, wanted: Callable[[_Sample], bool], what: str) -> _Sample:
    def look() -> _Sample | None:
        sample = _Sample(time.monotonic(), _status(site))
        return sample if wanted(sample) else None

    return wait_until(look, deadline_s=_PATIENCE_S, what=what, cap_s=0.1)


def _steps(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each step; `train_without_loop` is starting ranks, evaluation and bundle."""
    names = list(dict.fromkeys(name for report in reports for name in report["steps"]))
    steps = {name: _median([report["steps"][name] for report in reports if name in report["steps"]]) for name in names}
    loop_s = _median([report["train_s"] for report in reports])
    return {**steps, "train_without_loop": round(steps["train"] - loop_s, 3)}


def _median(values: list[float], digits: int = 3) -> float:
    return round(statistics.median(values), digits)
