"""Tests that say `record_property("scenario", ...)` are counted: how many faults of a kind were survived."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of scenarios."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, kind in getattr(report, "user_properties", ()):
                if name == "scenario" and (report.when == "call" or outcome == "failed"):
                    counts.setdefault(kind, Counter())[outcome] += 1
    for kind, count in sorted(counts.items()):
        lost = f", {count['failed']} NOT" if count["failed"] else ""
        terminalreporter.write_line(f"fault scenarios, {kind}: {count['passed']} survived{lost}")
