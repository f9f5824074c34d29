from __future__ import annotations

import numpy as np
import pytest

from filmloop.config.schema import DriftSection
from filmloop.drift.detect import Detector, threshold
from filmloop.drift.explain import Channels, explain
from filmloop.drift.gain import gain_for
from filmloop.drift.moments import moments_of
from filmloop.drift.reference import Reference
from filmloop.drift.window import window_of

from .conftest import REFERENCE, weaker

SECTION = DriftSection()
STRICT = {name: 0.0 for name in DriftSection.model_fields if name.startswith("least_")}
LATER = REFERENCE + 4


def found(beam, change=None, windows=3, **conditions):
    """What is said after some windows, and after how many there was an alarm."""
    detector, first = beam.detector(), None
    for number in range(windows):
        if detector.take(beam.window(LATER + number, change, **conditions)):
            first = first or number + 1
    return explain(detector.basis(), detector, SECTION), first


@pytest.mark.parametrize(
    ("conditions", "kind", "value", "says"),
    [
        ({"photon_energy_bin": 68.1}, "energy", 4.1, "photon energy +"),
        ({"kick_bin": 41.6}, "streaking", 1.3, "streaking amplitude 1.3"),
        ({"intensity": 0.6}, "intensity", 0.6, "intensity 0.6"),
        ({"line_width_bin": 3.0}, "width", 1.5, "width of the lines 1."),
        ({"polarisation": 0.3}, "polarisation", 0.3, "polarisation"),
    ],
)
def test_each_drift_of_the_beam_is_found_in_the_first_window_and_named_with_its_size(
    beam, conditions, kind, value, says
):
    findings, first = found(beam, **conditions)
    assert first == 1
    (finding,) = [finding for finding in findings if finding.kind == kind]
    assert finding.value == pytest.approx(value, rel=0.06)
    assert finding.low < finding.value < finding.high
    assert says in finding.text
    assert finding.high - finding.low < 0.25 * max(value, 1)


def test_a_weaker_channel_is_named_alone(beam):
    findings, first = found(beam, weaker(3, 0.7))
    assert first == 1
    assert [finding.text[:28] for finding in findings] == ["gain of channel 3 is 0.70x ("]
    assert findings[0].low < 0.7 < findings[0].high


def test_a_dead_channel_is_named_and_its_neighbours_are_not(beam):
    findings, _ = found(beam, dead_channels=(5,))
    assert [finding.text for finding in findings] == ["channel 5 dead"]


def test_a_change_of_all_channels_is_intensity_and_not_gain(beam):
    findings, _ = found(beam, gain=0.6)
    assert [finding.kind for finding in findings] == ["intensity"]


def test_a_channel_that_counts_again_is_said_to():
    """The reference was taken while it was dead."""
    from .conftest import Beam

    class WithoutChannel5(Beam):
        def counts(self, number, **conditions):
            return super().counts(number, **{"dead_channels": (5,), **conditions})

    findings, first = found(WithoutChannel5(), dead_channels=())
    assert first == 1
    assert any(finding.kind == "alive" and finding.channels == (5,) for finding in findings)


def test_what_only_the_likelihood_shows_is_called_unknown(beam):
    detector = beam.detector()
    window = beam.window(LATER)
    rows = [list(row) for row in window.gram]
    shift = 60.0
    rows[3][3] += 2 * shift * rows[0][3] + shift**2 * window.frames
    for i in range(3):
        rows[i][3] += shift * rows[0][i]
        rows[3][i] = rows[i][3]
    worse = window.model_copy(update={"gram": tuple(map(tuple, rows))})
    assert detector.take(worse)
    (finding,) = explain(detector.basis(), detector, SECTION)
    assert finding.kind == "unknown"
    assert "the NLL alone, +" in finding.text


def test_a_better_likelihood_is_no_drift(beam):
    detector = beam.detector()
    window = beam.window(LATER)
    rows = [list(row) for row in window.gram]
    for i in range(3):
        rows[i][3] -= 60 * rows[0][i]
        rows[3][i] = rows[i][3]
    assert not detector.take(window.model_copy(update={"gram": tuple(map(tuple, rows))}))


def test_quiet_windows_raise_no_alarm_even_without_tolerances(beam):
    """12 windows at a stated rate of 1 in 1,000."""
    detector = beam.detector(**STRICT)
    assert [detector.take(beam.window(LATER + number)) for number in range(12)] == [False] * 12


def test_thresholds_follow_from_the_stated_rate():
    limits = [threshold(DriftSection(false_alarms_per_1000=rate), 16) for rate in (0.1, 1.0, 10.0)]
    assert limits == sorted(limits, reverse=True)
    # 38 statistics at two scales: 1e-3 / 76, two-sided.
    assert limits[1] == pytest.approx(4.357, abs=0.01)


def test_so_many_alarms_come_from_gaussian_noise_as_stated():
    """z of two scales as the detector has them, with a common reference; 4,000 windows at 100 in 1,000."""
    rng = np.random.default_rng(3)
    limit = threshold(DriftSection(false_alarms_per_1000=100), 16)
    alarms = 0
    for _ in range(40):
        reference = rng.normal(0, 8**-0.5, 38)
        noise = rng.normal(0, 1, (107, 38))
        single = (noise[7:] - reference) / np.sqrt(1 + 1 / 8)
        eight = np.stack([noise[i : i + 8].mean(axis=0) for i in range(100)]) - reference
        alarms += int(((np.abs(single) > limit).any(axis=1) | (np.abs(eight / 0.5) > limit).any(axis=1)).sum())
    assert 0.4 * 400 < alarms < 1.15 * 400


def test_a_small_drift_is_found_by_eight_windows_together(beam):
    detector = beam.detector()
    alarms = [detector.take(beam.window(LATER + n, weaker(3, 0.955, seed=n))) for n in range(12)]
    assert not any(alarms[:3])
    assert alarms[-1]


def test_an_alarm_ends_when_the_windows_are_quiet_again(beam):
    detector = beam.detector()
    assert detector.take(beam.window(LATER, weaker(3, 0.7)))
    last = [detector.take(beam.window(LATER + 1 + number)) for number in range(14)]
    assert last[0]
    assert not last[-1]
    assert explain(detector.basis(), detector, SECTION)


def test_gains_are_estimated_from_what_changed_only_and_within_bounds(beam):
    window = beam.window(LATER, lambda counts: weaker(7, 0.05)(weaker(3, 0.5)(counts)))
    section = DriftSection(largest_gain=4.0)
    gain = gain_for(Channels(window, beam.reference, section), section)
    assert gain.gain_C[3] == pytest.approx(0.5, rel=0.04)
    assert gain.gain_C[7] == 1.0 or gain.gain_C[7] == 0.25
    assert gain.gain_C[0] == gain.gain_C[15] == 1.0
    assert gain_for(Channels(window, beam.reference, section), DriftSection(correct_gain=False)) is None
    quiet = Channels(beam.window(LATER), beam.reference, section)
    assert gain_for(quiet, section) is None


def test_nothing_is_corrected_when_most_channels_are_dead(beam):
    window = beam.window(LATER, dead_channels=tuple(range(9)))
    assert gain_for(Channels(window, beam.reference, SECTION), SECTION) is None


def test_frames_without_a_count_raise_an_alarm_and_no_exception(beam):
    detector = beam.detector()
    assert detector.take(beam.window(LATER, np.zeros_like))
    assert explain(detector.basis(), detector, SECTION)[0].kind == "intensity"


def weak(rng, hits, frames=64):
    """A window of frames with so many hits on average, in the middle of 16 channels; with 0 one hit each."""
    counts_NCE = np.zeros((frames, 16, 128), np.uint8)
    for frame in counts_NCE:
        for _ in range(rng.poisson(hits) if hits else 1):
            frame[rng.integers(16), rng.integers(40, 80)] += 1
    return window_of(moments_of(counts_NCE), 5.0 * counts_NCE.sum(axis=(1, 2)) + rng.normal(0, 0.1, frames))


@pytest.mark.parametrize("seed", range(10))
def test_a_window_without_two_hits_in_any_frame_is_explained_without_a_word_on_what_hits_share(seed):
    rng = np.random.default_rng(seed)
    detector = Detector(SECTION, Reference([weak(rng, 4.0) for _ in range(8)]))
    window = weak(rng, 0)
    assert not np.isfinite(window.ratios()[0][-2])
    assert detector.take(window)
    kinds = {finding.kind for finding in explain(detector.basis(), detector, SECTION)}
    assert "intensity" in kinds
    assert not kinds & {"pulses", "streaking"}


@pytest.mark.parametrize("share", [0.0, -1e-9, 1e-9])
def test_a_reference_in_which_no_hits_shared_a_phase_is_no_unit_for_how_often_they_do_now(beam, share):
    """Streaked by no field, or a detector of few channels."""
    sums = list(beam.reference.window.sums)
    sums[-2] = (share, *sums[-2][1:2], 0.0, 0.0, sums[-2][4])
    detector = Detector(SECTION, Reference([beam.reference.window.model_copy(update={"sums": tuple(sums)})]))
    detector.take(beam.window(LATER))
    findings = explain(detector.basis(), detector, SECTION)
    assert all(finding.kind != "pulses" for finding in findings)


def test_an_odd_number_of_reference_windows_is_refused():
    with pytest.raises(ValueError, match="not even"):
        DriftSection(reference_windows=7)


def test_a_detector_begins_without_an_alarm(beam):
    assert not Detector(SECTION, beam.reference).alarm
