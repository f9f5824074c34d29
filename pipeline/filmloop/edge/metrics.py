"""The edge's numbers for Prometheus: a text file that node_exporter's textfile collector picks up.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from filmloop.config.paths import Home
from filmloop.drift.explain import Finding
from filmloop.drift.report import DriftReport
from filmloop.edge.status import EdgeStatus

_GAUGES = {
    "rate_hz": "Frames taken in a second",
    "frames_open": "Frames in shards that are not sealed yet",
    "frames_waiting": "Frames in the ring",
    # Not a counter: a frame that comes out of order takes back what was missing.
    "frames_missing": "Pulse ids that were never delivered",
}
_COUNTERS = {
    "frames_in": "Frames that the source delivered",
    "frames_inferred": "Frames inferred",
    "frames_staged": "Frames in sealed shards",
    "frames_out_of_order": "Frames delivered after a later one",
    "swaps": "Changes of the live weights in this life",
    "swaps_refused": "Versions that were offered and not fit to be loaded",
}


def metrics_text(status: EdgeStatus) -> str:
    """All metrics of one status, one a line, each with its help."""
    return "\n".join(_lines(status)) + "\n"


def write_metrics(home: Home, status: EdgeStatus) -> None:
    """Replace the metrics file in one step.

    Raises:
        OSError: the disk refuses.
    """
    part = home.edge_metrics.with_name(f"{home.edge_metrics.name}.{os.getpid()}.part")
    part.write_text(metrics_text(status), encoding="utf-8")
    os.replace(part, home.edge_metrics)


def _lines(status: EdgeStatus) -> Iterator[str]:
    who = {"site": status.site, "stream": status.stream}
    running = status.state in ("running", "drained")
    yield from _metric("up", "gauge", "Whether the edge takes frames", [(who, float(running))])
    for name, text in _GAUGES.items():
        yield from _metric(name, "gauge", text, [(who, getattr(status, name))])
    for name, text in _COUNTERS.items():
        yield from _metric(f"{name}_total", "counter", text, [(who, getattr(status, name))])
    for name, text in (("dropped", "Frames not inferred"), ("unstaged", "Frames not staged")):
        reasons = getattr(status, f"frames_{name}")
        yield from _metric(
            f"frames_{name}_total", "counter", text, [({**who, "reason": reason}, n) for reason, n in reasons.items()]
        )
    stages = [({**who, "stage": stage}, n) for stage, n in status.restarts.items()]
    yield from _metric("stage_restarts_total", "counter", "Stages started anew in this life", stages)
    latency = [
        ({**who, "quantile": q}, ms / 1e3)
        for q, ms in (
            ("0.5", status.latency_p50_ms),
            ("0.99", status.latency_p99_ms),
            ("0.999", status.latency_p999_ms),
        )
    ]
    yield from _metric("latency_seconds", "gauge", "From a batch's oldest frame to its result, newest batches", latency)
    if status.version:
        labels = {**who, "version": status.version, "runtime": status.runtime}
        yield from _metric("model_version", "gauge", "Live version", [(labels, float(status.version))])
    if quality := status.quality:
        yield from _metric("quality_nll", "gauge", "Held-out thinned NLL, nats a frame", [(who, quality.nll)])
        yield from _metric(
            "quality_nll_constant", "gauge", "The same of the running mean frame", [(who, quality.nll_constant)]
        )
        yield from _metric("hits_per_frame", "gauge", "Mean counts of a frame", [(who, quality.hits_per_frame)])
    if seen := status.input:
        hits = [({**who, "channel": str(c)}, value) for c, value in enumerate(seen.hits_per_channel)]
        yield from _metric("channel_hits", "gauge", "Mean counts of a channel", hits)
        centres = [({**who, "channel": str(c)}, value) for c, value in enumerate(seen.centre_per_channel)]
        yield from _metric("channel_centre_bins", "gauge", "Mean energy of a channel's counts", centres)
        yield from _metric("dead_channels", "gauge", "Channels without counts", [(who, len(seen.dead_channels))])
    if status.drift:
        yield from _drift(status.drift, who)


def _drift(report: DriftReport, who: dict[str, str]) -> Iterator[str]:
    yield from _metric("drift_alarm", "gauge", "Whether there is a drift", [(who, float(report.alarm))])
    needs = [(who, float(report.needs_training))]
    yield from _metric("drift_needs_training", "gauge", "Whether it takes other weights to undo it", needs)
    yield from _metric("drift_windows", "gauge", "Windows tested since the version is live", [(who, report.windows)])
    z = [({**who, "statistic": name}, value) for name, value in report.z.items()]
    yield from _metric("drift_z", "gauge", "Standard deviations off, beyond what is no drift", z)
    yield from _metric("drift_z_threshold", "gauge", "Those that raise an alarm", [(who, report.threshold)])
    if report.nll_excess is not None:
        excess = [(who, report.nll_excess)]
        yield from _metric("drift_nll_excess", "gauge", "NLL above the version's own, nats a frame", excess)
    found = [({**who, "kind": finding.kind}, finding.value) for finding in _largest(report.findings)]
    yield from _metric("drift_finding", "gauge", "What drifted: a factor, a shift in bins, or as documented", found)
    if gain := report.gain:
        gains = [({**who, "channel": str(c)}, 0.0 if c in gain.dead else g) for c, g in enumerate(gain.gain_C)]
        yield from _metric("input_gain", "gauge", "Gain that is corrected before the network, 0 for masked", gains)


def _largest(findings: Sequence[Finding]) -> list[Finding]:
    """The first of each kind: a metric has one value for its labels."""
    return list({finding.kind: finding for finding in reversed(findings)}.values())


def _metric(name: str, kind: str, text: str, values: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    if not values:
        return
    yield f"# HELP filmloop_{name} {text}."
    yield f"# TYPE filmloop_{name} {kind}"
    for labels, value in values:
        words = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        yield f"filmloop_{name}{{{words}}} {value!r}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
