from __future__ import annotations

import re
import sys
import threading

import pytest

from filmloop.config.paths import Home
from filmloop.drift.explain import Finding, beam_off, unsteady
from filmloop.drift.gain import Gain
from filmloop.drift.report import DriftReport
from filmloop.edge.metrics import metrics_text, write_metrics
from filmloop.edge.reporter import Reporter, accounting_of
from filmloop.edge.ring import PLACES, ROLES, SEATS, FrameRing, RingLayout
from filmloop.edge.status import EdgeStatus, InputStatistics, Quality, read_status
from filmloop.edge.supervisor import Supervisor
from filmloop.testing.edge import small_site

METRIC, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(rf"({METRIC})\{{((?:{LABEL}(?:,(?=[a-zA-Z_])|(?=\}})))*)\}} (\S+)")


def parsed(text):
    """Samples by (name, labels), and the type of each metric; as strict as the format's description.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    assert text.endswith("\n")
    samples, types, helped = {}, {}, set()
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name, _, words = line.removeprefix("# HELP ").partition(" ")
            assert re.fullmatch(METRIC, name)
            assert words
            assert name not in helped, "told twice"
            helped.add(name)
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert kind in ("counter", "gauge")
            assert name in helped
            assert name not in types
            types[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == list(types)[-1], "the samples of a metric stand together, behind its type"
            labels = tuple(re.findall(LABEL, match[2]))
            assert len(dict(labels)) == len(labels)
            assert (match[1], labels) not in samples, "two samples of one name"
            samples[match[1], labels] = float(match[5])
    assert set(types) == helped == {name for name, _ in samples}
    return samples, types


def status(**given):
    values = {
        "pid": 1, "state": "running", "started_utc": "a", "updated_utc": "b", "site": "s", "stream": "t",
        "frames_in": 123_456_789, "frames_dropped": {"late": 3, "no_model": 4}, "frames_unstaged": {"late": 3},
        "latency_p50_ms": 1.25, "rate_hz": 120_000.0, "version": "1234567", "runtime": "torch",
        "restarts": dict.fromkeys(ROLES, 0),
        "quality": Quality(version="7", frames=3, nll=-1.5, nll_constant=1e-7, hits_per_frame=2.0),
        "input": InputStatistics(hits_per_channel=(1.0, 2.0), centre_per_channel=(3.0, -1.0), dead_channels=(1,)),
        "drift": DriftReport(
            version="3", frames=512, windows=1, reference_frames=4096, reference_wanted=4096, nll_reference=1.0,
            nll_reference_low=0.9, nll_reference_high=1.1, nll=1.0, nll_excess=0.5, nll_excess_sd=0.1, alarm=True,
            needs_training=True, z={"share": -5.0, "nll": 0.0}, threshold=4.4,
            findings=(
                Finding(kind="gain", channels=(0,), value=0.5, low=0.4, high=0.6, text="a"),
                Finding(kind="gain", channels=(1,), value=0.7, low=0.6, high=0.8, text="b"),
            ),
            gain=Gain(gain_C=(0.5, 0.7), dead=(1,)),
        ),
    }  # fmt: skip
    return EdgeStatus(**{**values, **given})


def value(text, name, **labels):
    (found,) = [
        value
        for (metric, pairs), value in parsed(text)[0].items()
        if metric == f"filmloop_{name}" and labels.items() <= dict(pairs).items()
    ]
    return found


def test_the_text_is_what_prometheus_reads_and_says_the_numbers_of_the_status():
    text = metrics_text(status())
    assert value(text, "up") == 1
    # Three years at 100 kHz: every digit counts.
    assert " 9876543210123\n" in metrics_text(status(frames_in=9_876_543_210_123))
    assert value(text, "frames_in_total") == 123_456_789
    assert value(text, "frames_dropped_total", reason="no_model") == 4
    assert value(text, "frames_unstaged_total", reason="late") == 3
    assert value(text, "latency_seconds", quantile="0.5") == 0.00125
    assert value(text, "model_version") == 1_234_567
    assert value(text, "quality_nll") == -1.5
    assert value(text, "quality_nll_constant") == 1e-7
    assert value(text, "channel_hits", channel="1") == 2.0
    assert value(text, "dead_channels") == 1
    assert value(text, "stage_restarts_total", stage="staging") == 0


def test_a_status_with_next_to_nothing_in_it_is_text_too():
    text = metrics_text(EdgeStatus(pid=1, state="starting", started_utc="", updated_utc="", site="", stream=""))
    parsed(text)
    assert value(text, "up") == 0


@pytest.mark.parametrize("name", ['quote"d', "back\\slash", "two\nlines", 'all\\"\n', "Ω, x=1}"])
def test_labels_of_any_text_are_escaped(name):
    samples, _ = parsed(metrics_text(status(site=name, stream=name)))
    for _, labels in samples:
        escaped = dict(labels)["site"]
        assert re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), escaped) == name


def test_what_is_called_a_counter_never_falls_while_an_edge_lives():
    """A frame out of order closes a gap, so the missing ones may become fewer: a gauge."""
    _, types = parsed(metrics_text(status()))
    counters = {name for name, kind in types.items() if kind == "counter"}
    assert all(name.endswith("_total") for name in counters)
    assert not any(name.endswith("_total") for name in set(types) - counters)
    assert "filmloop_frames_missing" in set(types) - counters


def test_the_file_is_replaced_in_one_step(tmp_path):
    home = Home(tmp_path)
    home.edge_metrics.parent.mkdir(parents=True)
    write_metrics(home, status(frames_in=1))
    with home.edge_metrics.open() as reader:
        write_metrics(home, status(frames_in=2))
        assert value(reader.read(), "frames_in_total") == 1
    assert value(home.edge_metrics.read_text(), "frames_in_total") == 2
    assert list(home.edge_metrics.parent.iterdir()) == [home.edge_metrics]


@pytest.fixture
def ring():
    ring = FrameRing.new(RingLayout(frames=64, frame_shape=(4, 16), labelled=False))
    yield ring
    ring.close()


def test_while_frames_flow_no_stage_seems_to_be_ahead_of_the_one_before_it(ring):
    """The three cells are read one after the other: from the back, or frames would come out that never went in."""
    done = threading.Event()

    def stages():
        source, inference, staging = ring.source.read(), ring.inference.read(), ring.staging.read()
        while not done.is_set():
            source["frames_in"] += 1
            ring.source.write(source)
            inference["inferred"] += 1
            ring.inference.write(inference)
            staging["sealed"] += 1
            ring.staging.write(staging)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    working = threading.Thread(target=stages)
    working.start()
    try:
        for _ in range(3000):
            seen = accounting_of(ring)
            assert seen.frames_in >= seen.frames_inferred >= seen.frames_staged
    finally:
        sys.setswitchinterval(interval_s)
        done.set()
        working.join()


def reporting(home, ring):
    supervisor = Supervisor(ring, [], stall_after_s=1.0)
    return Reporter(config=small_site(), home=home, stream="t", ring=ring, supervisor=supervisor)


def test_the_newest_problem_of_all_is_told_and_news_that_lack_it_harm_nothing(tmp_path, ring):
    home = Home(tmp_path)
    reporter = reporting(home, ring)
    reporter.write("starting")
    assert read_status(home).last_problem == ""
    ring.boards["source"].write({"problem": "old", "problem_utc": "2026-11-24T00:00:00.000Z"})
    ring.boards["staging"].write({"problem": "new", "problem_utc": "2026-11-25T00:00:00.000Z"})
    ring.boards["inference"].write({"problem": None, "problem_utc": None, "input": None, "version": "7"})
    reporter.write("running")
    told = read_status(home)
    assert told.last_problem == "new"
    assert told.version == "7"


def test_a_problem_that_began_later_is_not_hidden_by_one_that_is_told_at_every_look(tmp_path, ring):
    reporter = reporting(Home(tmp_path), ring)

    def told(place, problem, since, last):
        ring.boards[place].write({"problem": problem, "problem_since_utc": f"2026-11-24T00:{since}.000Z", "problem_utc": f"2026-11-24T00:{last}.000Z"})  # fmt: skip

    told("inference", "the registry is away", "00:00", "10:05")
    told("staging", "the disk is full", "09:00", "10:00")
    status = reporter.status("running")
    assert (status.last_problem, status.last_problem_utc) == ("the disk is full", "2026-11-24T00:10:00.000Z")
    told("inference", "the registry is away", "00:00", "12:00")
    assert reporter.status("running").last_problem == "the registry is away", "the disk has been well for two minutes"


def test_the_seat_that_serves_is_told_of_and_what_both_have_counted(tmp_path, ring):
    reporter = reporting(Home(tmp_path), ring)
    first = {"version": "8", "runtime": "torch", "swaps": 3, "swaps_refused": 1, "latency_counts": {"5": 2, "6": 1}}
    second = {"version": "9", "runtime": "torch", "swaps": 2, "latency_counts": {"6": 4}, "latency_p99_ms": 4.5}
    ring.boards[SEATS[0]].write(first)
    ring.boards[SEATS[1]].write(second)
    assert reporter.status("running").version == "8"
    ring.inference.write({**ring.inference.read(), "seat": 1})
    told = reporter.status("running")
    assert (told.version, told.latency_p99_ms) == ("9", 4.5)
    assert (told.swaps, told.swaps_refused, told.latency_counts) == (5, 1, {"5": 2, "6": 5})


def test_a_state_is_starting_until_every_stage_has_shown_life(tmp_path, ring):
    reporter = reporting(Home(tmp_path), ring)
    states = []
    for place in ROLES:  # whoever stands by is not waited for
        states.append(reporter._state())
        ring.beats[PLACES.index(place)] = 1
    ring.source.write({**ring.source.read(), "drained": 0})
    states.append(reporter._state())
    ring.source.write({**ring.source.read(), "drained": 1})
    states.append(reporter._state())
    assert states == ["starting", "starting", "starting", "running", "drained"]


def test_drift_is_told_by_statistic_by_kind_and_by_channel():
    samples, _ = parsed(metrics_text(status()))
    told = {(name, dict(labels).get(key, "")): value for key, name in
            (("statistic", "filmloop_drift_z"), ("kind", "filmloop_drift_finding"), ("channel", "filmloop_input_gain"))
            for (metric, labels), value in samples.items() if metric == name}  # fmt: skip
    assert told == {
        ("filmloop_drift_z", "share"): -5.0, ("filmloop_drift_z", "nll"): 0.0, ("filmloop_drift_finding", "gain"): 0.5,
        ("filmloop_input_gain", "0"): 0.5, ("filmloop_input_gain", "1"): 0.0,
    }  # fmt: skip
    for name in ("alarm", "needs_training"):
        assert next(value for (metric, _), value in samples.items() if metric == f"filmloop_drift_{name}") == 1.0


def test_a_lost_beam_and_a_restless_one_are_told_as_findings_are():
    drift = DriftReport(
        version="3", reference_frames=9, reference_wanted=4096, findings=(beam_off(0.25, 1.6), unsteady(2))
    )
    samples, _ = parsed(metrics_text(status(drift=drift)))
    told = {
        dict(labels)["kind"]: value for (metric, labels), value in samples.items() if metric == "filmloop_drift_finding"
    }
    assert told == {"beam_off": 0.25, "unsteady": 2.0}
