from __future__ import annotations

import pytest

from filmloop.config.schema import DriftSection
from filmloop.drift.explain import Finding, beam_off, unsteady
from filmloop.drift.policy import why_not
from filmloop.drift.report import DriftReport

QUIET = DriftReport(version="3", reference_frames=4096, reference_wanted=4096, windows=12)
LEARNING = DriftReport(version="3", reference_frames=100, reference_wanted=4096)
UNTESTED = QUIET.model_copy(update={"windows": 0})
GAIN = Finding(kind="gain", channels=(3,), value=0.7, low=0.69, high=0.71, text="gain of channel 3 is 0.70x")
DRIFTED = QUIET.model_copy(update={"alarm": True, "alarm_since_utc": "T", "needs_training": True, "findings": (GAIN,)})
UNSTEADY = LEARNING.model_copy(
    update={"alarm": True, "alarm_since_utc": "T", "needs_training": True, "findings": (unsteady(2),)}
)
DARK = QUIET.model_copy(update={"findings": (beam_off(0.5, 30.0),)})
CORRECTED = DRIFTED.model_copy(update={"needs_training": False})


@pytest.mark.parametrize(
    ("policy", "report", "trained_s_ago", "goes"),
    [
        ("always", QUIET, 1.0, True),
        ("on_drift", QUIET, 1e9, False),
        ("on_drift", LEARNING, 1e9, False),
        ("on_drift", DRIFTED, 1.0, True),
        ("on_drift", UNSTEADY, 1.0, True),
        ("on_drift", DARK, 1e9, False),
        ("on_drift", CORRECTED, 1e9, False),
        ("on_drift", None, 1.0, True),
        ("on_drift", QUIET, None, True),
        ("on_drift_or_after", QUIET, 3599.0, False),
        ("on_drift_or_after", QUIET, 3600.0, True),
        ("on_drift_or_after", DRIFTED, 1.0, True),
        ("on_drift_or_after", CORRECTED, 3601.0, True),
    ],
)
def test_a_cycle_runs_when_the_policy_says_so(policy, report, trained_s_ago, goes):
    section = DriftSection(policy=policy, after_s=3600.0)
    assert (why_not(section, report, trained_s_ago=trained_s_ago) == "") is goes


def test_the_reason_names_the_version_and_the_way_around():
    said = why_not(DriftSection(policy="on_drift"), QUIET, trained_s_ago=1.0)
    assert said.startswith("No drift since version 3 went live (12 windows tested).")
    assert "--force" in said
    said = why_not(DriftSection(policy="on_drift"), UNTESTED, trained_s_ago=1.0)
    assert said.startswith("Drift of version 3: nothing can be said yet")
    said = why_not(DriftSection(policy="on_drift"), CORRECTED, trained_s_ago=1.0)
    assert "channel 3 is 0.70x" in said
    assert "corrected" in said
    said = why_not(DriftSection(policy="on_drift"), DARK, trained_s_ago=1.0)
    assert said.startswith("Drift of version 3 cannot be tested: beam off: 0.50 counts a frame")


def test_a_report_says_in_one_line_what_there_is():
    assert "100 of 4,096" in LEARNING.in_words()
    assert "none since version 3" in QUIET.in_words()
    assert UNTESTED.in_words() == "version 3: nothing can be said yet, no window was tested"
    assert DRIFTED.in_words() == "since T: gain of channel 3 is 0.70x"
    assert "no training needed" in CORRECTED.in_words()
    assert UNSTEADY.in_words().startswith("since T: the beam drifts faster")
