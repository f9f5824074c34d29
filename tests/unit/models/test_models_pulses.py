from __future__ import annotations

import numpy as np
import pytest

from filmloop_models.cookiebox.lines import LineModel
from filmloop_models.cookiebox.pulses import read_pulses, score_pulses
from filmloop_models.cookiebox.pursuit import TemplatePursuit

PURSUIT = TemplatePursuit(width_bin=2.0)


def line(amplitude: float, centre: float, phase_deg: float) -> list[float]:
    phase = np.radians(phase_deg)
    return [amplitude, centre, 32 * np.cos(phase), 32 * np.sin(phase)]


LINES = np.array(
    [[line(12, 62, 40), line(9, 66, 200)], [line(15, 64, 300), [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]], np.float32
)


def test_lines_are_read_off_rates() -> None:
    model = LineModel(kick_bin=32.0, width_bin=2.0, background=0.003, factor_C=np.ones(16, np.float32))
    score = score_pulses(read_pulses(model.draw(LINES, 128), PURSUIT), LINES, width_bin=2.0)
    assert score.count_accuracy == pytest.approx(1.0)
    assert score.found == 1.0
    assert score.phase_error_deg < 0.3


def test_what_is_missing_or_displaced_is_counted() -> None:
    found = LINES.copy()
    found[0, 1] = 0  # one sub-pulse of frame 0 is not found
    found[1, 0] = line(15, 64, 303)  # 3 degrees: 1.7 bins where the line moves most
    score = score_pulses(found, LINES, width_bin=2.0)
    assert score.count_accuracy == pytest.approx(2 / 3)
    assert score.found == pytest.approx(2 / 3)
    assert score.phase_error_deg == pytest.approx(1.5, abs=0.01)  # the median of 0 and 3


def test_a_line_elsewhere_is_no_partner_and_one_line_is_no_partner_twice() -> None:
    found = np.array([[line(9, 64, 120)]], np.float32)
    true = np.array([[line(12, 64, 120), line(11, 64, 121)]], np.float32)
    assert score_pulses(found, true, width_bin=2.0).found == 0.5
    far = score_pulses(found, np.array([[line(12, 64, 170)]], np.float32), width_bin=2.0)
    assert far.found == 0
    assert np.isnan(far.phase_error_deg)
    assert far.count_accuracy == 1
