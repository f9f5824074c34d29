"""Dashboard and alert rules ask for metrics that the edge writes, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from filmloop.drift.explain import Finding
from filmloop.drift.gain import Gain
from filmloop.drift.report import DriftReport
from filmloop.edge.metrics import metrics_text
from filmloop.edge.ring import ROLES
from filmloop.edge.status import EdgeStatus, InputStatistics, Quality

CHECKOUT = Path(__file__).parents[2]
DASHBOARD = CHECKOUT / "site_configs/grafana/filmloop-edge.json"
OF_NODE_EXPORTER = {"node_textfile_mtime_seconds": {"file"}}


@pytest.fixture(scope="module")
def emitted() -> dict[str, set[str]]:
    """The labels of every metric that a status with everything in it gives."""
    status = EdgeStatus(
        pid=1, state="running", started_utc="", updated_utc="", site="s", stream="t", version="3", runtime="torch",
        frames_dropped={"no_model": 1}, frames_unstaged={"queue_full": 1}, restarts=dict.fromkeys(ROLES, 0),
        quality=Quality(version="3", frames=1, nll=1.0, nll_constant=2.0, hits_per_frame=3.0),
        input=InputStatistics(hits_per_channel=(1.0,), centre_per_channel=(2.0,), dead_channels=(0,)),
        drift=DriftReport(
            version="3", frames=512, windows=1, reference_frames=4096, reference_wanted=4096, nll_reference=1.0,
            nll_reference_low=0.9, nll_reference_high=1.1, nll=1.0, nll_excess=0.5, nll_excess_sd=0.1, alarm=True,
            needs_training=True, z={"share": -5.0, "nll": 0.0}, threshold=4.4,
            findings=(
                Finding(kind="gain", channels=(0,), value=0.5, low=0.4, high=0.6, text="a"),
                Finding(kind="gain", channels=(1,), value=0.7, low=0.6, high=0.8, text="b"),
            ),
            gain=Gain(gain_C=(0.5, 0.7), dead=(1,)),
        ),
    )  # fmt: skip
    lines = re.findall(r"^(filmloop_\w+)\{(.*)\} ", metrics_text(status), re.MULTILINE)
    return OF_NODE_EXPORTER | {name: set(re.findall(r"(\w+)=", labels)) for name, labels in lines}


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def targets(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        yield from ((target["expr"], target["legendFormat"]) for target in panel.get("targets", ()))


def unknown(expression: str, emitted: dict[str, set[str]]) -> list[str]:
    """Metrics that nobody writes, and labels that they do not have."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = re.findall(r"(?:filmloop|node)_\w+", bare)
    wrong = [name for name in names if name not in emitted]
    for name, labels in re.findall(r"(\w+)\{([^}]*)\}", bare):
        wrong += [f"{name}.{label}" for label in re.findall(r"(\w+)[=!]", labels) if label not in emitted[name]]
    for grouped in re.findall(r"by \(([^)]*)\)", bare):
        wrong += [label for label in grouped.split(", ") if not all(label in emitted[name] for name in names)]
    return wrong if names else [f"no metric in {expression}"]


def test_every_query_of_the_dashboard_is_for_a_metric_that_the_edge_writes(
    board: dict[str, Any], emitted: dict[str, set[str]]
) -> None:
    found = list(targets(board))
    assert len(found) > 10
    assert [wrong for expression, _ in found for wrong in unknown(expression, emitted)] == []
    for expression, legend in found:
        (name,) = re.findall(r"filmloop_\w+", expression)
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= emitted[name], legend


def test_the_dashboard_shows_what_an_operator_asks_first(board: dict[str, Any]) -> None:
    asked = " ".join(expression for expression, _ in targets(board))
    for name in (
        "up", "rate_hz", "frames_staged_total", "frames_unstaged_total", "frames_dropped_total", "latency_seconds",
        "quality_nll", "quality_nll_constant", "channel_hits", "stage_restarts_total", "model_version", "drift_alarm",
        "drift_z",
    ):  # fmt: skip
        assert f"filmloop_{name}{{" in asked


def test_the_dashboard_can_be_imported(board: dict[str, Any]) -> None:
    """What Grafana needs: an input for the data source, ids that differ, panels that do not overlap, variables."""
    inputs = {"${%s}" % given["name"] for given in board["__inputs"]}  # noqa: UP031  # braces of its own
    panels = board["panels"]
    used = {panel["datasource"]["uid"] for panel in panels if "datasource" in panel}
    assert used == inputs
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert board["schemaVersion"] >= 36
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {name for expression, _ in targets(board) for name in re.findall(r"\$(\w+)", expression)} <= variables
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = any(one[at] + one[by] <= other[at] or other[at] + other[by] <= one[at] for at, by in ("xw", "yh"))
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24


def test_every_alert_rule_of_the_page_is_about_a_metric_that_the_edge_writes(emitted: dict[str, set[str]]) -> None:
    page = (CHECKOUT / "docs/howto/run-unattended.md").read_text(encoding="utf-8")
    (rules,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
    assert len(expressions) == rules.count("- alert:") >= 2
    assert [wrong for expression in expressions for wrong in unknown(expression, emitted)] == []


def test_a_query_for_what_nobody_writes_is_found(emitted: dict[str, set[str]]) -> None:
    assert unknown('rate(filmloop_frames_gone_total{site="s"}[1m])', {**emitted, "filmloop_frames_gone_total": set()})
    assert unknown("filmloop_nothing", emitted) == ["filmloop_nothing"]
    assert unknown('filmloop_up{colour="red"}', emitted) == ["filmloop_up.colour"]
    assert unknown("sum by (site, colour) (filmloop_up)", emitted) == ["colour"]
