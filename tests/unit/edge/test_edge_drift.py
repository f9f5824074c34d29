"""The monitor in the inference stage: it learns, alarms, corrects, remembers; and the runtime behind a correction."""

from __future__ import annotations

import numpy as np
import pytest

from filmloop.config.schema import DriftSection
from filmloop.core.poisson import poisson_nll
from filmloop.drift.beam import beam_off_told
from filmloop.drift.gain import Gain, gain_told
from filmloop.edge.drift import DriftMonitor
from filmloop.edge.gain import Corrected
from filmloop.edge.runtimes.pending import Done, surprise_of
from filmloop.ports.runtime import Inferred
from filmloop_models.catalog import get
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

SECTION = DriftSection(window_frames=256, reference_windows=4)
SORT_KEY = get("mixer").sort_key


def frames(first, count, seed=7, **conditions):
    return CookieBoxSimulator(Conditions(**conditions), seed=seed).frames(first, count).counts_NCE


def show(monitor, counts_NCE, extra=0.0):
    """As the quality monitor does, 32 frames at a time, with a predictor that corrects what it is told to."""
    for start in range(0, len(counts_NCE), 32):
        part = counts_NCE[start : start + 32]
        rate_NCE = np.full(part.shape, 0.3)
        if monitor.gain is not None:
            rate_NCE *= monitor.gain.after_C[:, None]
        monitor.observe(part, poisson_nll(rate_NCE, part) + extra)


def weak(counts_NCE, channel=3, gain=0.5):
    counts_NCE = counts_NCE.copy()
    counts_NCE[:, channel] = np.random.default_rng(1).binomial(counts_NCE[:, channel], gain)
    return counts_NCE


@pytest.fixture
def learned(tmp_path):
    monitor = DriftMonitor(SECTION, tmp_path / "drift")
    monitor.switch("3", "a" * 64)
    show(monitor, frames(0, 1024))
    return monitor


def test_nothing_is_tested_before_the_reference_is_there(tmp_path):
    monitor = DriftMonitor(SECTION, tmp_path)
    assert monitor.report() is None
    monitor.observe(frames(0, 32), np.zeros(32))
    monitor.switch("3", "d")
    show(monitor, frames(0, 992))
    report = monitor.report()
    assert (report.reference_frames, report.reference_wanted, report.nll_reference) == (992, 1024, None)
    show(monitor, frames(992, 32))
    report = monitor.report()
    assert report.reference_frames == report.reference_wanted == 1024
    assert report.nll_reference_low < report.nll_reference < report.nll_reference_high
    assert report.nll_reference_sd > 0
    assert (report.windows, report.alarm) == (0, False)
    show(monitor, frames(1024, 64))
    said = monitor.report().in_words()
    assert said == "version 3: nothing can be said yet, no window was tested; 192 more sampled frames make the first"
    show(monitor, frames(1088, 192))
    assert monitor.report().in_words() == "none since version 3 went live: 1 window tested"


def test_a_drift_while_the_reference_is_taken_is_not_normal(tmp_path, caplog):
    monitor = DriftMonitor(SECTION, tmp_path)
    monitor.switch("3", "d")
    show(monitor, frames(0, 512))
    show(monitor, frames(512, 512, photon_energy_bin=70.0))
    assert monitor.report().nll_reference is None
    assert "drifted while the reference" in caplog.text
    show(monitor, frames(1024, 512, photon_energy_bin=70.0))
    assert monitor.report().nll_reference is not None
    show(monitor, frames(1536, 512, photon_energy_bin=70.0))
    assert not monitor.report().alarm


def test_a_gain_is_corrected_and_needs_no_training_while_the_likelihood_holds(learned):
    show(learned, weak(frames(1024, 768)))
    report = learned.report()
    assert report.alarm
    assert report.gain.gain_C[3] == pytest.approx(0.5, rel=0.1)
    assert [finding.kind for finding in report.findings] == ["gain"]
    assert report.z["share"] < -report.threshold
    assert not report.needs_training


def test_an_nll_that_stays_up_in_spite_of_the_correction_needs_training(learned):
    show(learned, weak(frames(1024, 768)), extra=50.0)
    assert learned.gain is not None
    assert learned.report().needs_training


def test_a_gain_that_is_not_to_be_corrected_needs_training(tmp_path):
    monitor = DriftMonitor(SECTION.model_copy(update={"correct_gain": False}), tmp_path)
    monitor.switch("3", "d")
    show(monitor, frames(0, 1024))
    show(monitor, weak(frames(1024, 512)))
    assert monitor.gain is None
    assert monitor.report().needs_training


def test_a_drift_of_the_beam_needs_training_and_changes_no_gain(learned):
    show(learned, frames(1024, 512, kick_bin=42.0))
    report = learned.report()
    assert report.needs_training
    assert report.gain is None
    assert "streaking" in report.in_words()


def test_the_correction_ends_with_the_drift(learned):
    show(learned, weak(frames(1024, 512)))
    assert learned.gain is not None
    show(learned, frames(1536, 4096))
    assert learned.gain is None
    assert not learned.report().alarm


def test_reference_alarm_and_correction_survive_a_restart(learned, tmp_path):
    show(learned, weak(frames(1024, 512)))
    before = learned.report()
    learned.finish()
    monitor = DriftMonitor(SECTION, tmp_path / "drift")
    monitor.switch("3", "a" * 64)
    after = monitor.report()
    assert (after.alarm, after.alarm_since_utc) == (True, before.alarm_since_utc)
    assert [finding.kind for finding in after.findings] == ["gain"]
    assert after.nll_reference == pytest.approx(before.nll_reference)
    assert monitor.gain == learned.gain
    monitor.switch("3", "b" * 64)
    assert monitor.report().reference_frames == 0, "a bundle of another digest is another model"
    assert monitor.gain is None


def test_a_version_that_comes_back_is_judged_by_its_own_reference(learned):
    show(learned, weak(frames(1024, 256)))
    learned.switch("4", "b" * 64)
    assert learned.gain is None
    show(learned, weak(frames(1280, 1024)))
    show(learned, weak(frames(2304, 512)))
    assert not learned.report().alarm, "what version 4 went live with is normal for it"
    learned.switch("3", "a" * 64)
    assert learned.report().nll_reference is not None
    show(learned, weak(frames(2816, 512)))
    assert learned.gain is not None


def test_a_version_that_comes_back_to_a_healthy_detector_has_no_alarm_of_before(learned, tmp_path):
    show(learned, weak(frames(1024, 256)))
    assert learned.report().alarm
    learned.switch("4", "b" * 64)
    learned.switch("3", "a" * 64)
    learned.finish()
    again = DriftMonitor(SECTION, tmp_path / "drift")
    again.switch("3", "a" * 64)
    for monitor in (learned, again):
        report = monitor.report()
        assert report.nll_reference is not None
        assert (report.alarm, report.alarm_since_utc, report.findings, monitor.gain) == (False, "", (), None)


def test_an_alarm_that_was_not_taken_up_is_not_kept_for_the_next_process_either(learned, tmp_path):
    """The former process ended before it had written that the version was replaced."""
    show(learned, weak(frames(1024, 256)))
    learned.finish()
    for versions in (("4", "3"), ("3",)):
        monitor = DriftMonitor(SECTION, tmp_path / "drift")
        for version in versions:
            monitor.switch(version, {"3": "a", "4": "b"}[version] * 64)
        monitor.finish()
        assert monitor.report().nll_reference is not None
        assert not monitor.report().alarm
        assert monitor.gain is None


def test_an_alarm_of_before_is_not_taken_up_by_a_process_that_relieves_another_one(learned, tmp_path):
    show(learned, weak(frames(1024, 256)))
    learned.finish()
    monitor = DriftMonitor(SECTION, tmp_path / "drift")
    monitor.switch("3", "a" * 64, relieves=True)
    assert monitor.report().nll_reference is not None, "what is normal is known all the same"
    assert (monitor.report().alarm, monitor.gain) == (False, None)


def test_an_alarm_ends_when_the_version_is_left_to_another_process(learned, tmp_path):
    show(learned, weak(frames(1024, 256)))
    assert learned.report().alarm
    learned.leave()
    assert (learned.report().alarm, learned.gain) == (False, None)
    learned.finish()
    again = DriftMonitor(SECTION, tmp_path / "drift")
    again.switch("3", "a" * 64)
    assert again.report().nll_reference is not None
    assert not again.report().alarm


WANDERING = [62.0, 70.0, 78.0, 62.0]
"""Photon energies of consecutive halves of a reference."""


def wander(monitor, energies=WANDERING):
    for number, bin_ in enumerate(energies):
        show(monitor, frames(512 * number, 512, photon_energy_bin=bin_))


def test_a_beam_that_drifts_faster_than_a_reference_is_taken_needs_training(tmp_path, caplog):
    monitor = DriftMonitor(SECTION, tmp_path)
    monitor.switch("3", "d")
    wander(monitor, WANDERING[:2])
    assert not monitor.report().alarm, "one may be a single step"
    wander(monitor, WANDERING[2:])
    report = monitor.report()
    assert report.reference_frames < report.reference_wanted
    assert report.alarm
    assert report.needs_training
    assert report.alarm_since_utc
    assert [(finding.kind, finding.value) for finding in report.findings] == [("unsteady", 3)]
    assert "drifts faster than a reference can be taken" in report.in_words()
    assert "drifts faster" in caplog.text
    monitor.finish()
    again = DriftMonitor(SECTION, tmp_path)
    again.switch("3", "d")
    assert again.report() == report
    for each in (monitor, again):
        show(each, frames(4096, 512, photon_energy_bin=62.0))
        report = each.report()
        assert report.nll_reference is not None
        assert (report.alarm, report.alarm_since_utc, report.needs_training, report.findings) == (False, "", False, ())


@pytest.mark.parametrize("spoil", ["loop", "bytes", "text"])
def test_a_memory_that_cannot_be_read_is_told_and_measured_anew(learned, tmp_path, caplog, spoil):
    learned.finish()
    (path,) = (tmp_path / "drift").glob("*.json")
    if spoil == "loop":
        path.unlink()
        path.symlink_to(path.name)
    else:
        path.write_bytes({"bytes": b'"\xff\xfe"', "text": b"{"}[spoil])
    monitor = DriftMonitor(SECTION, tmp_path / "drift")
    monitor.switch("3", "a" * 64)
    assert monitor.report().reference_frames == 0
    assert caplog.text.count("is measured anew") == 1
    monitor.switch("9", "c" * 64)
    assert caplog.text.count("is measured anew") == 1, "a version without a memory is nothing to tell"


def test_a_lost_beam_is_no_drift_and_changes_no_correction(learned, caplog):
    show(learned, weak(frames(1024, 512)))
    gain, before = learned.gain, learned.report()
    assert not before.beam_off
    assert not beam_off_told({"drift": before.as_json()})
    # It goes in the middle of a block, and dark counts go on.
    show(learned, weak(np.concatenate([frames(1536, 48), frames(1584, 976, intensity=0.0)])))
    report = learned.report()
    assert [finding.kind for finding in report.findings] == ["beam_off", "gain"]
    assert report.windows == before.windows
    assert not report.needs_training
    assert "beam off" in report.in_words()
    assert beam_off_told({"drift": report.as_json()})
    assert learned.gain == gain
    show(learned, weak(np.concatenate([frames(2560, 16, intensity=0.0), frames(2576, 1008)])))
    report = learned.report()
    assert [finding.kind for finding in report.findings] == ["gain"]
    assert (report.alarm, report.alarm_since_utc, report.needs_training) == (True, before.alarm_since_utc, False)
    assert report.windows > before.windows
    assert [record.levelname for record in caplog.records if "beam" in record.message] == ["WARNING"]


def test_a_drift_that_needs_training_waits_for_the_beam(learned):
    show(learned, frames(1024, 512, kick_bin=42.0))
    assert learned.report().needs_training
    show(learned, frames(1536, 512, intensity=0.0))
    assert not learned.report().needs_training
    show(learned, frames(2048, 64, kick_bin=42.0))
    assert learned.report().needs_training


def test_dark_frames_are_not_learned_as_normal(tmp_path):
    monitor = DriftMonitor(SECTION, tmp_path)
    monitor.switch("3", "d")
    show(monitor, frames(0, 2048, intensity=0.0))
    report = monitor.report()
    assert (report.reference_frames, report.alarm, report.needs_training) == (0, False, False)
    assert [finding.kind for finding in report.findings] == ["beam_off"]
    show(monitor, frames(2048, 1088))
    report = monitor.report()
    assert report.nll_reference is not None
    assert report.findings == ()


def test_a_disk_that_refuses_costs_the_memory_and_nothing_else(tmp_path, caplog):
    (tmp_path / "drift").write_text("in the way")
    monitor = DriftMonitor(SECTION, tmp_path / "drift")
    monitor.switch("3", "d")
    show(monitor, frames(0, 1280))
    monitor.finish()
    assert monitor.report().windows == 1
    assert "cannot be remembered" in caplog.text


class Twice:
    """A network that doubles."""

    version, name, batch_frames, most_frames, lanes, closed = "3", "twice", 32, 64, 4, 0

    def start(self, counts_NCE, *, dense=False, surprise=False):
        assert not surprise, "it would be that of the scaled counts"
        rate_NCE = self.infer(counts_NCE)
        return Done(Inferred(phase_N=SORT_KEY(rate_NCE), rate_NCE=rate_NCE if dense else None))

    def infer(self, counts_NCE):
        return np.asarray(counts_NCE, np.float32) * 2

    def close(self):
        self.closed += 1


def test_counts_are_divided_and_rates_multiplied_and_keys_are_those_of_the_corrected_frame():
    gain = Gain(gain_C=(1.0, 0.5, 1.0, 1.0), dead=(2,))
    base = Twice()
    runtime = Corrected(base, gain, SORT_KEY)
    counts_NCE = np.random.default_rng(0).poisson(2.0, (5, 4, 16)).astype(np.uint8)
    clean_NCE = counts_NCE.astype(np.float32)
    clean_NCE[:, 1] *= 2
    clean_NCE[:, 2] = 0
    done = runtime.start(counts_NCE, dense=True, surprise=True).result()
    np.testing.assert_allclose(done.rate_NCE[:, 1], counts_NCE[:, 1] * 2.0)
    np.testing.assert_allclose(done.rate_NCE[:, 2], 0)
    np.testing.assert_allclose(done.phase_N, SORT_KEY(clean_NCE * 2))
    np.testing.assert_allclose(done.surprise_N, surprise_of(counts_NCE, done.rate_NCE))
    np.testing.assert_allclose(runtime.infer(counts_NCE), done.rate_NCE)
    plain = runtime.start(counts_NCE).result()
    assert plain.rate_NCE is None
    assert plain.surprise_N is None
    assert (runtime.version, runtime.name, runtime.batch_frames, runtime.most_frames) == ("3", "twice", 32, 64)
    runtime.close()
    assert base.closed == 1


def test_staging_tells_the_gain_that_inference_told(learned):
    show(learned, weak(frames(1024, 512)))
    told = gain_told({"drift": learned.report().as_json()})
    assert told == learned.gain.gain_C
    assert gain_told({"drift": {"gain": {"gain_C": [0.5, 1.0], "dead": [1]}}}) == (0.5, 0.0)
    assert gain_told({}) == gain_told({"drift": {"gain": None}}) == gain_told({"drift": None}) == ()
