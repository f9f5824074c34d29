"""What to do after a cycle: commands that fit how it ended."""

from __future__ import annotations

from filmloop.core.documents import CycleReport

_ALWAYS = {
    "promoted": ("status", "models history"),
    "refused": ("models show challenger", "retrain"),
    "undecided": ("models show challenger", "models history", "retrain"),
}


def next_steps(report: CycleReport, *, edge_runs: bool) -> list[str]:
    """Commands of filmloop, the most likely one first.

    Args:
        report: How the cycle ended; one that was closed as failed has an error with a hint of its own.
        edge_runs: Whether an edge runs: then there is none to be started, and frames come by themselves.
    """
    commands = list(_ALWAYS.get(report.outcome, ("status",)))
    if not edge_runs and report.outcome in ("promoted", "nothing_to_do"):
        commands.insert(0 if report.outcome == "nothing_to_do" else len(commands), "edge run")
    return commands
