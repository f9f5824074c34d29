"""A site that retrains on drift: what skips a cycle before anything is started, and what begins one early."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest

from filmloop import watching
from filmloop.bootstrap import Site, open_ledger
from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.clock import utc_now, utc_text
from filmloop.core.documents import CycleReport
from filmloop.core.errors import TrainingError, TransientError
from filmloop.drift.report import DriftReport
from filmloop.edge.lock import only_edge
from filmloop.edge.status import EdgeStatus, write_status
from filmloop.local_loop import drift_seen, no_need, retrain_once

QUIET = DriftReport(version="3", reference_frames=4096, reference_wanted=4096, windows=12)
DRIFTED = QUIET.model_copy(update={"alarm": True, "alarm_since_utc": "2026-01-01", "needs_training": True})


def site_of(tmp_path, **drift):
    config = SiteConfig.model_validate({"drift": {"policy": "on_drift", **drift}})
    return Site(file=tmp_path / "site.toml", config=config, home=Home(tmp_path / "home"))


@contextmanager
def edge(site, report, *, stream=None, frames=10_000):
    """A living edge, so far as its lock and its status say."""
    site.home.edge.mkdir(parents=True, exist_ok=True)
    with only_edge(site.home):
        said = EdgeStatus(
            pid=1,
            state="running",
            started_utc="",
            updated_utc="",
            site="local",
            stream=stream or site.stream,
            drift=report,
            frames_open=frames,
        )
        write_status(site.home, said)
        yield


def train(site, outcome="promoted"):
    with open_ledger(site) as ledger:
        cycle = ledger.start_cycle()
        ledger.finish_cycle(cycle.cycle_id, outcome, {})


def test_a_quiet_beam_costs_no_cycle_and_starts_nothing(tmp_path):
    site = site_of(tmp_path)
    train(site)
    with edge(site, QUIET):
        report = retrain_once(site, with_edge=False, tell=lambda *_: None)
    assert report.outcome == "nothing_to_do"
    assert report.message.startswith("No drift since version 3 went live")
    assert not site.home.registry.exists()
    with open_ledger(site) as ledger:
        assert len(ledger.history(5)) == 1


def test_what_nobody_watches_is_trained(tmp_path):
    site = site_of(tmp_path)
    with open_ledger(site) as ledger:
        train(site, "failed")
        with edge(site, QUIET):
            assert no_need(site, ledger) == "", "no cycle has trained yet"
        train(site)
        with edge(site, QUIET):
            assert no_need(site, ledger)
        with edge(site, DRIFTED):
            assert no_need(site, ledger) == ""
        with edge(site, QUIET, stream="another"):
            assert no_need(site, ledger) == ""
        assert no_need(site, ledger) == "", "the edge is gone, whatever its status says"
        always = site_of(tmp_path, policy="always")
        with edge(site, QUIET):
            assert no_need(always, ledger) == ""


@pytest.fixture
def cycles(monkeypatch):
    """What the watch begins; an exception in the list is raised instead."""
    begun, outcomes = [], []

    def retrain(site, *, with_edge, tell):
        begun.append(drift_seen(site))
        outcome = outcomes.pop(0) if outcomes else "promoted"
        if isinstance(outcome, Exception):
            raise outcome
        return CycleReport(outcome=outcome, message="")

    monkeypatch.setattr(watching, "retrain_once", retrain)
    return begun, outcomes


def test_an_alarm_begins_one_cycle_and_another_one_after_the_rest(tmp_path, cycles):
    begun, _ = cycles
    site, told = site_of(tmp_path, rest_s=1000.0), []
    watch = watching.Watch(site, lambda step, text: told.append(text))
    assert watch.look() is None
    with edge(site, QUIET):
        assert watch.look() is None
    with edge(site, DRIFTED):
        assert watch.look().outcome == "promoted"
        assert watch.look() is None
    assert len(begun) == len(told) == 1
    with edge(site, DRIFTED.model_copy(update={"alarm_since_utc": "2026-01-02"})):
        assert watch.look() is not None, "it is another drift"
    eager = watching.Watch(site_of(tmp_path, rest_s=1e-6), lambda *_: None)
    with edge(site, DRIFTED):
        assert eager.look() is not None
        assert eager.look() is not None, "it lasts"


def test_a_cycle_waits_for_frames_and_not_for_a_rest(tmp_path, cycles):
    """It would find nothing to do, and rest."""
    begun, _ = cycles
    site, told = site_of(tmp_path, rest_s=1000.0), []
    watch = watching.Watch(site, lambda step, text: told.append(text))
    for frames in (0, 5_999):
        with edge(site, DRIFTED, frames=frames):
            assert watch.look() is None
    assert len(told) == 2
    assert told[1] == "a cycle begins with 6,000 more fresh frames"
    with edge(site, QUIET, frames=0):
        assert watch.look() is None
    with edge(site, DRIFTED, frames=5_000):
        assert watch.look() is None
    assert told[2:] == [told[0], "a cycle begins with 1,000 more fresh frames"], "another alarm is told of, too"
    with edge(site, DRIFTED, frames=6_000):
        assert watch.look().outcome == "promoted"
    assert (len(begun), len(told)) == (1, 4), "the drift was told of already"
    with open_ledger(site) as ledger:
        ledger.start_cycle()
    with edge(site, DRIFTED.model_copy(update={"alarm_since_utc": "2026-01-02"}), frames=0):
        assert watch.look() is not None, "one that was cut off has its frames"


def test_trouble_that_passes_does_not_end_the_watch_and_other_trouble_does(tmp_path, cycles):
    begun, outcomes = cycles
    site = site_of(tmp_path, rest_s=1e-6)
    watch = watching.Watch(site, lambda *_: None)
    outcomes[:] = [TransientError("the registry is away"), TrainingError("the loss is not finite")]
    with edge(site, DRIFTED):
        assert watch.look() is None
        with pytest.raises(TrainingError):
            watch.look()
    assert len(begun) == 2


def test_a_cycle_that_failed_for_good_is_not_begun_again_before_the_rest_by_a_watch_that_was_restarted(
    tmp_path, cycles
):
    """systemd starts the watch again after a minute, as often as a cycle fails: each would cost a training."""
    begun, _ = cycles
    site = site_of(tmp_path, rest_s=600.0)
    drifted = DRIFTED.model_copy(update={"alarm_since_utc": utc_now()})
    train(site, "failed")
    with edge(site, drifted):
        assert watching.Watch(site, lambda *_: None).look() is None
        assert begun == []
        assert watching.Watch(site_of(tmp_path, rest_s=1e-6), lambda *_: None).look() is not None
    later = DRIFTED.model_copy(update={"alarm_since_utc": utc_text(time.time() + 1)})
    with edge(site, later):
        assert watching.Watch(site, lambda *_: None).look() is not None, "it is another drift"


def test_a_drift_that_comes_while_another_cycle_runs_is_taken_up_soon_after(tmp_path, cycles, monkeypatch):
    """That one may have chosen its frames before the drift: a rest of ten minutes would begin with nothing done."""
    begun, outcomes = cycles
    monkeypatch.setattr(watching, "_BUSY_S", 0.05)
    site, told = site_of(tmp_path, rest_s=1000.0), []
    watch = watching.Watch(site, lambda step, text: told.append(text))
    outcomes[:] = ["busy", "busy"]
    with edge(site, DRIFTED):
        assert watch.look().outcome == "busy"
        assert watch.look() is None
        time.sleep(0.06)
        assert watch.look().outcome == "busy"
        time.sleep(0.06)
        assert watch.look().outcome == "promoted"
        time.sleep(0.06)
        assert watch.look() is None
    assert (len(begun), len(told)) == (3, 1)
