"""How many frames inference takes at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from filmloop.edge.stages.batching import Batching


def runtime(batch_frames=256, most_frames=4096):
    return SimpleNamespace(batch_frames=batch_frames, most_frames=most_frames)


def at_pace(frames_per_s, **given):
    batching = Batching(**given)
    batching.note(0, 10.0)
    batching.note(frames_per_s // 5, 10.2)
    return batching


@pytest.mark.parametrize("waiting", [1, 200, 256, 1024])
def test_who_keeps_up_takes_what_is_there_up_to_a_batch(waiting):
    assert at_pace(300_000).frames(waiting, runtime()) == min(waiting, 256)


@pytest.mark.parametrize(
    ("waiting", "taken"), [(1025, 256), (8191, 256), (8192, 512), (20_000, 1024), (62_464, 3840), (131_072, 4096)]
)
def test_the_more_waits_the_more_is_taken_in_whole_batches(waiting, taken):
    assert at_pace(300_000).frames(waiting, runtime()) == taken


@pytest.mark.parametrize(("pace_hz", "taken"), [(4000, 256), (75_000, 1280), (1_000_000, 3840)])
def test_a_slow_network_is_given_no_more_than_it_does_in_20_ms(pace_hz, taken):
    assert at_pace(pace_hz).frames(62_464, runtime()) == taken


def test_of_a_pace_that_is_not_known_yet_nothing_is_expected():
    assert Batching().frames(62_464, runtime()) == 256
    batching = Batching()
    batching.note(1_000_000, 10.0)
    assert batching.frames(62_464, runtime()) == 256, "frames of a former life say nothing"


@pytest.mark.parametrize(
    ("batch_frames", "most_frames", "taken"), [(16, 256, 256), (16, 4096, 3840), (32, 64, 64), (4096, 4096, 4096)]
)
def test_a_piece_is_never_more_than_a_runtime_takes_nor_less_than_its_batch(batch_frames, most_frames, taken):
    assert at_pace(300_000).frames(62_464, runtime(batch_frames, most_frames)) == taken


def test_the_pace_is_that_of_late():
    batching = at_pace(300_000)
    batching.note(60_000 + 800, 10.4)
    assert batching.frames(62_464, runtime()) == 256


def test_where_rates_leave_the_runtime_pieces_stay_small():
    assert at_pace(300_000, dense=True).frames(62_464, runtime()) == 256
    assert at_pace(300_000, dense=True).frames(62_464, runtime(4096)) == 4096
