"""What is suggested after a cycle fits how it ended and what runs."""

from __future__ import annotations

from typing import get_args

import pytest

from filmloop.cli.next_steps import next_steps
from filmloop.cli.reference import commands
from filmloop.core.documents import CycleReport, Outcome


def after(outcome: Outcome, *, edge_runs: bool) -> list[str]:
    return next_steps(CycleReport(outcome=outcome, message=""), edge_runs=edge_runs)


def test_an_edge_is_suggested_where_frames_would_be_served_or_are_missing_and_none_runs() -> None:
    assert after("promoted", edge_runs=False) == ["status", "models history", "edge run"]
    assert after("promoted", edge_runs=True) == ["status", "models history"]
    assert after("nothing_to_do", edge_runs=False)[0] == "edge run"
    assert after("nothing_to_do", edge_runs=True) == ["status"]


@pytest.mark.parametrize("outcome", ["refused", "undecided"])
def test_after_a_refusal_its_reasons_are_to_be_seen_and_the_next_cycle_to_be_run(outcome: Outcome) -> None:
    steps = after(outcome, edge_runs=True)
    assert (steps[0], steps[-1]) == ("models show challenger", "retrain")
    assert steps == after(outcome, edge_runs=False)


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_what_is_suggested_are_commands(outcome: Outcome) -> None:
    names = set(commands())
    for edge_runs in (False, True):
        for step in after(outcome, edge_runs=edge_runs):
            assert step in names or step.rpartition(" ")[0] in names
