"""The books of the staging stage: how much they remember, and how exactly."""

from __future__ import annotations

from collections import Counter

import pytest

from filmloop.core.documents import PulseRange
from filmloop.edge.ring import FrameRing, RingLayout
from filmloop.edge.stages.book import StagingBook

FRAMES, TURNS = 64, 6000


class Stream:
    """What the source tells of a stream that goes bad: a damaged frame before each sound one."""

    def __init__(self, ring):
        self.ring, self.book, self.head, self.notes = ring, StagingBook(ring), 0, 0
        self.book.begin_shard(1)

    def next(self):
        """Places of the next sound frame."""
        id_of_damaged, at = 2 * self.head, self.head % FRAMES
        damaged = PulseRange(
            first_pulse_id=id_of_damaged, last_pulse_id=id_of_damaged, frames=1, reason="bad_frame", run_number=1
        )
        self.ring.write_note(self.notes, self.head, damaged)
        self.ring.pulse_id_F[at], self.ring.run_number_F[at] = id_of_damaged + 1, 1
        self.head, self.notes = self.head + 1, self.notes + 1
        self.ring.source.write({**self.ring.source.read(), "head": self.head, "notes": self.notes})
        return slice(at, at + 1)

    def stage(self):
        self.book.count(self.next(), 1, 0)
        self.book.mark_last()


@pytest.fixture
def stream():
    ring = FrameRing.new(RingLayout(frames=FRAMES, frame_shape=(1, 2), labelled=False))
    yield Stream(ring)
    ring.close()


def told(dropped):
    frames = Counter()
    for each in dropped:
        frames[each.reason] += each.frames
    return frames


def test_a_manifest_names_few_ranges_however_many_frames_were_left_out_and_counts_them_all(stream):
    for _ in range(TURNS):
        stream.book.leave_out(stream.next(), "disk_full", 0)
    stream.stage()
    _, dropped = stream.book.close_shard()
    assert len(dropped) <= 4097
    assert told(dropped) == {"bad_frame": TURNS + 1, "disk_full": TURNS}
    assert {each.run_number for each in dropped} == {1}
    assert min(each.first_pulse_id for each in dropped) == 0
    assert max(each.last_pulse_id for each in dropped) == 2 * TURNS


def test_few_frames_that_were_left_out_are_named_one_by_one(stream):
    for _ in range(1000):
        stream.book.leave_out(stream.next(), "disk_full", 0)
    stream.stage()
    _, dropped = stream.book.close_shard()
    assert [each.first_pulse_id for each in dropped] == list(range(2001))


def test_what_was_left_out_behind_the_last_frame_of_a_shard_is_for_the_next_one_though_there_is_much_of_it(stream):
    for _ in range(1000):
        stream.stage()
    for _ in range(TURNS):
        stream.book.leave_out(stream.next(), "disk_full", 0)
    _, first = stream.book.close_shard()
    assert told(first) == {"bad_frame": 1000}
    for _ in range(TURNS):
        stream.book.leave_out(stream.next(), "disk_full", 0)
    stream.stage()
    _, second = stream.book.close_shard()
    assert told(second) == {"bad_frame": 2 * TURNS + 1, "disk_full": 2 * TURNS}
    assert len(second) <= 4097
