from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmloop.core.types import BAD, MAX_RUN, FrameBlock
from filmloop.edge import intake as intake_module
from filmloop.edge.intake import LATE_IN_A_ROW, MAX_ID, WINDOW, Intake, sound_or_bad
from filmloop.edge.ring import CAME_WITH

SHAPE = (2, 3)


def block(ids, run=1, shape=SHAPE, dtype=np.uint8, bad=()):
    ids_N = np.asarray(ids, np.uint64)
    return FrameBlock(
        run_number=run,
        pulse_id_N=ids_N,
        counts_NCE=np.zeros((len(ids_N), *shape), dtype),
        flags_N=np.where(np.isin(ids_N, np.asarray(list(bad), np.uint64)), BAD, 0).astype(np.uint8),
    )


def intake(last=None, recent=None):
    recent = None if recent is None else np.asarray(recent, np.uint64)
    return Intake(SHAPE, last, dict.fromkeys(CAME_WITH, 0), recent)


def counts(intake):
    """What was counted, without zeros."""
    return {name: count for name, count in intake.counts.items() if count}


def admit(intake, ids, **given):
    """The pulse ids let in, of any block."""
    return [
        pulse_id
        for part in sound_or_bad(block(ids, **given))
        for pulse_id in intake.admit(part).block.pulse_id_N.tolist()
    ]


def test_frames_in_order_are_all_let_in_and_gaps_are_missing():
    door = intake()
    arrival = door.admit(block([5, 6, 9, 10]))
    assert arrival.block.pulse_id_N.tolist() == [5, 6, 9, 10]
    assert arrival.came_with_NK[:, CAME_WITH.index("frames_in")].tolist() == [1, 2, 3, 4]
    assert arrival.came_with_NK[:, CAME_WITH.index("missing")].tolist() == [0, 0, 2, 2]
    assert counts(door) == {"frames_in": 4, "missing": 2}
    assert door.last == (1, 10)


def test_frames_missing_between_two_blocks_and_two_lives_are_counted():
    door = intake((1, 9))
    door.admit(block([12, 13]))
    assert counts(door) == {"frames_in": 2, "missing": 2}
    door.admit(block([20]))
    assert counts(door) == {"frames_in": 3, "missing": 2 + 6}


def test_a_new_run_begins_wherever_it_likes_and_remembers_nothing_of_the_one_before():
    door = intake((1, 9))
    assert admit(door, [3, 4], run=2) == [3, 4]
    assert admit(door, [3], run=3) == [3]
    assert counts(door) == {"frames_in": 3}
    assert door.last == (3, 3)


def test_a_repeated_id_is_a_duplicate_in_its_block_and_in_any_later_one():
    door = intake()
    assert admit(door, [7, 8, 8, 7]) == [7, 8]
    assert admit(door, [8, 9]) == [9]
    assert admit(door, [7]) == []
    assert counts(door) == {"frames_in": 7, "duplicate": 4}


def test_a_frame_out_of_order_is_welcome_once_and_takes_back_what_was_missing():
    door = intake()
    assert admit(door, [1, 2, 5]) == [1, 2, 5]
    assert counts(door) == {"frames_in": 3, "missing": 2}
    assert admit(door, [4, 6, 3]) == [4, 6, 3]
    assert counts(door) == {"frames_in": 6, "out_of_order": 2}
    assert admit(door, [3, 4]) == []
    assert counts(door) == {"frames_in": 8, "out_of_order": 2, "duplicate": 2}


def test_ids_below_the_first_of_the_run_are_welcome_and_were_never_missing():
    door = intake()
    assert admit(door, [100, 98, 101, 99]) == [100, 98, 101, 99]
    assert counts(door) == {"frames_in": 4, "out_of_order": 2}


def test_what_is_older_than_the_window_is_late_and_told():
    door = intake()
    assert admit(door, [0, WINDOW + 10]) == [0, WINDOW + 10]
    arrival = door.admit(block([10, 11, 9]))
    assert arrival.block.pulse_id_N.tolist() == [11]
    (late,) = arrival.passed
    assert (late.first_pulse_id, late.last_pulse_id, late.frames, late.reason) == (9, 10, 2, "late")
    assert counts(door) == {"frames_in": 5, "missing": WINDOW + 9 - 1, "late": 2, "out_of_order": 1}


def test_ids_are_told_apart_far_beyond_several_windows():
    door = intake()
    first = 5 * WINDOW + 17
    step = 4096
    for start in range(first, first + 3 * WINDOW, step):
        ids = np.arange(start, start + step)
        assert len(admit(door, ids[ids % 5 != 0])) == (ids % 5 != 0).sum()
    top = first + 3 * WINDOW
    # The oldest that is remembered, and the one before.
    oldest = door.last[1] - WINDOW + 1
    seen = next(number for number in range(oldest, top) if number % 5)
    gap = next(number for number in range(oldest, top) if number % 5 == 0)
    before = counts(door)
    assert admit(door, [oldest - 1, seen, gap]) == [gap]
    after = counts(door)
    assert after["late"] == 1
    assert after["duplicate"] == before.get("duplicate", 0) + 1


@pytest.mark.parametrize("first", [0, WINDOW - 3, WINDOW, 7 * WINDOW - 1])
def test_a_jump_of_more_than_a_window_inside_a_block_marks_no_id_that_never_came(first):
    door = intake()
    top = first + WINDOW + 5
    assert admit(door, [first, first + 1, top]) == [first, first + 1, top]
    # These lie where the first two did, one turn of the window later.
    assert admit(door, [first + WINDOW, first + WINDOW + 1]) == [first + WINDOW, first + WINDOW + 1]
    assert "duplicate" not in counts(door)


def test_one_damaged_id_far_ahead_costs_some_late_frames_and_the_count_of_missing_ones_recovers():
    door = intake()
    admit(door, range(100))
    assert admit(door, [1 << 50]) == [1 << 50]
    admitted = []
    for start in range(100, 100 + 2 * LATE_IN_A_ROW, 64):
        admitted += admit(door, range(start, start + 64))
    assert admitted == list(range(100 + LATE_IN_A_ROW, 100 + 2 * LATE_IN_A_ROW))
    assert counts(door) == {"frames_in": 101 + 2 * LATE_IN_A_ROW, "late": LATE_IN_A_ROW}
    assert door.last == (1, 99 + 2 * LATE_IN_A_ROW)


def test_a_pause_of_the_beam_longer_than_a_window_is_missing_for_good_though_the_numbers_begin_anew_later():
    door = intake()
    admit(door, [0])
    pause = 3 * WINDOW
    admit(door, range(pause, pause + 10))
    admit(door, range(pause + 10, pause + 20))
    for start in range(0, LATE_IN_A_ROW, 64):
        assert admit(door, range(start, start + 64)) == []
    assert admit(door, [LATE_IN_A_ROW]) == [LATE_IN_A_ROW]
    assert counts(door)["missing"] == pause - 1


def test_a_sender_that_brings_what_it_had_queued_makes_nothing_missing_that_came():
    """One sends even ids, the other odd ones; the second was away for longer than a window."""
    door, far = intake(), 3 * WINDOW
    for start in range(0, far, 4096):
        admit(door, range(start, start + 4096, 2))
    top = door.last
    assert counts(door)["missing"] == top[1] // 2
    came = []
    for start in range(1, 20_000, 1024):
        came += admit(door, range(start, start + 1024, 2))
    assert came[0] == 2 * LATE_IN_A_ROW + 1
    assert len(admit(door, range(top[1] + 1, top[1] + 1000))) == 999
    assert door.last == (1, top[1] + 999)
    assert counts(door)["missing"] == top[1] // 2 - len(came)
    assert counts(door)["late"] == LATE_IN_A_ROW
    # What the others had sent last is still known.
    assert admit(door, [top[1], top[1] - 1]) == [top[1] - 1]


def test_a_numbering_that_has_begun_anew_loses_nothing_where_it_comes_to_the_former_ids():
    door, far = intake(), 2 * WINDOW
    former = np.arange(far)
    former = former[former % 1000 != 7]
    for part in np.array_split(former, 40):
        admit(door, part)
    came = sum(len(admit(door, range(start, start + 1024))) for start in range(0, far, 1024))
    assert came == far - LATE_IN_A_ROW
    assert "duplicate" not in counts(door)
    assert counts(door)["missing"] == len(range(7, far, 1000))


def test_a_frame_that_is_not_late_after_many_that_were_leaves_the_window_where_it_is():
    door = intake()
    top = 2 * WINDOW
    admit(door, [0, top])
    admit(door, [top + 1])
    for _ in range(LATE_IN_A_ROW):
        admit(door, [5])
    assert admit(door, [top + 1, top + 2]) == [top + 2]


def test_a_few_late_frames_between_others_do_not_move_the_window_back():
    door = intake()
    admit(door, [0, 2 * WINDOW])
    for number in range(1, LATE_IN_A_ROW + 10):
        assert admit(door, [1]) == []
        if number % 1000 == 0:
            assert admit(door, [1, 2 * WINDOW + number]) == [2 * WINDOW + number]
    assert counts(door)["late"] == LATE_IN_A_ROW + 9 + 4


def test_frames_of_another_shape_or_type_are_bad_and_not_missing():
    door = intake()
    for wrong in (block([0, 1], shape=(2, 4)), block([2, 3], dtype=np.uint16)):
        arrival = door.admit(wrong)
        assert len(arrival.block) == 0
        (bad,) = arrival.passed
        assert (bad.first_pulse_id, bad.last_pulse_id, bad.frames, bad.reason) == (
            int(wrong.pulse_id_N[0]), int(wrong.pulse_id_N[-1]), 2, "bad_frame",
        )  # fmt: skip
    assert admit(door, [4]) == [4]
    assert counts(door) == {"frames_in": 5, "bad_frame": 4}


def test_damaged_frames_keep_their_place_in_the_stream():
    door = intake((1, 4))
    # 5 and 8 never come, 10 comes twice.
    assert admit(door, [6, 7, 9, 10, 10, 11], bad=(7, 9)) == [6, 10, 11]
    assert counts(door) == {"frames_in": 6, "bad_frame": 2, "duplicate": 1, "missing": 2}


def test_a_damaged_frame_that_came_before_is_a_duplicate():
    door = intake((1, 9))
    assert admit(door, [8, 10], bad=(8, 10)) == []
    assert counts(door) == {"frames_in": 2, "bad_frame": 1, "duplicate": 1}


@pytest.mark.parametrize("insane", [MAX_ID + 1, 2**63, 2**64 - 1])
def test_an_id_that_no_machine_counts_to_is_bad_and_moves_nothing(insane):
    door = intake()
    assert admit(door, [1, 2, insane, 3]) == [1, 2, 3]
    assert door.last == (1, 3)
    assert counts(door) == {"frames_in": 4, "bad_frame": 1}


@pytest.mark.parametrize("insane", [-1, MAX_RUN + 1, 2**63, 2**64 - 1])
def test_frames_of_a_run_that_no_shard_could_be_named_after_are_bad_and_move_nothing(insane):
    door = intake()
    assert admit(door, [1, 2]) == [1, 2]
    assert admit(door, [3, 4], run=insane) == []
    assert door.last == (1, 2)
    assert admit(door, [3], run=1) == [3]
    assert admit(door, [5], run=MAX_RUN) == [5]
    assert counts(door) == {"frames_in": 6, "bad_frame": 2}


def test_nobody_believes_the_number_of_a_damaged_frame_that_is_far_ahead_or_of_another_run():
    door = intake()
    admit(door, range(10))
    assert admit(door, [1 << 40], bad=[1 << 40]) == []
    assert admit(door, [3], run=77, bad=[3]) == []
    assert door.last == (1, 9)
    assert admit(door, [10, 11]) == [10, 11]
    assert counts(door) == {"frames_in": 14, "bad_frame": 2}


def test_frames_without_room_are_counted_told_exactly_and_not_missing():
    door = intake()
    admit(door, range(10))
    (told,) = door.overflow(block([9, 10, 11, 12]))
    assert (told.first_pulse_id, told.last_pulse_id, told.frames, told.reason) == (10, 12, 3, "overflow")
    assert door.overflow(block([9])) == ()
    assert admit(door, [13]) == [13]
    assert counts(door) == {"frames_in": 16, "duplicate": 2, "overflow": 3}


def test_damaged_and_late_frames_without_room_are_told_as_what_they_are():
    door = intake()
    admit(door, [0, WINDOW + 100])
    told = door.overflow(block([5, WINDOW + 101]))
    assert [(each.first_pulse_id, each.frames, each.reason) for each in told] == [
        (5, 1, "late"),
        (WINDOW + 101, 1, "overflow"),
    ]
    (told,) = door.overflow(block([WINDOW + 102], bad=[WINDOW + 102]))
    assert (told.first_pulse_id, told.frames, told.reason) == (WINDOW + 102, 1, "bad_frame")
    assert counts(door)["overflow"] == 1


def test_a_restart_without_a_memory_takes_nothing_from_before_twice():
    door = intake((1, 1000))
    assert admit(door, [1000, 990, 3, 1001]) == [1001]
    assert counts(door) == {"frames_in": 4, "duplicate": 3}


def test_a_restart_with_a_memory_welcomes_what_had_not_come():
    door = intake((1, 20), recent=[10, 11, 13, 12, 18, 20, 17])
    assert admit(door, [13, 14, 18, 19]) == [14, 19]
    assert counts(door)["out_of_order"] == counts(door)["duplicate"] == 2
    # They had been counted as missing by the life before.
    assert door.counts["missing"] == -2


def test_a_restart_costs_a_lagging_sender_nothing():
    """One sends even ids, the other odd ones, 1,000 behind; the ring holds the newest 300 frames."""
    door, came = intake(), []
    for start in range(0, 6000, 100):
        if start == 3000:
            door = Intake(SHAPE, door.last, door.counts, np.asarray(came[-300:], np.uint64))
        came += admit(door, range(start, start + 100, 2))
        if start >= 1000:
            came += admit(door, range(start - 999, start - 899, 2))
    assert len(came) == 3000 + 2500
    assert door.counts["duplicate"] == 0
    # Those that the second sender still has.
    assert door.counts["missing"] == 499


def test_a_restart_with_a_memory_takes_nothing_twice_that_the_memory_does_not_reach():
    door = intake((1, 20), recent=[10, 11, 20])
    assert admit(door, [9, 3, 21]) == [21]
    assert counts(door) == {"frames_in": 3, "duplicate": 2}


def test_a_block_is_cut_into_sound_and_damaged_parts_and_nothing_is_cut_without_need():
    parts = [part.pulse_id_N.tolist() for part in sound_or_bad(block(range(8), bad=(0, 3, 4, 7)))]
    assert parts == [[0], [1, 2], [3, 4], [5, 6], [7]]
    (whole,) = sound_or_bad(block(range(8)))
    assert whole.pulse_id_N.tolist() == list(range(8))


class Reference:
    """The same promises in the plainest words: one frame at a time, sets for a memory, Python's integers."""

    def __init__(self, window):
        self.window, self.run, self.highest, self.first, self.seen = window, None, 0, 0, set()
        self.counts = dict.fromkeys(CAME_WITH, 0)

    def read(self, run, frames, room):
        """The frames (pulse id, bad) of one read that are let in."""
        let_in, before, believed = [], None, 0
        for number, bad in frames:
            if bad != before:
                # How far a damaged frame may be ahead is settled before the damaged ones that come in a row.
                believed, before = self.highest + self.window - 1, bad
            self.counts["frames_in"] += 1
            if bad and (self.run != run or number > believed):
                self.counts["bad_frame"] += 1
            elif self.take(run, number):
                let_in += [] if bad or not room else [number]
                self.counts["bad_frame"] += bad
                self.counts["overflow"] += not bad and not room
        return let_in

    def take(self, run, number):
        if self.run != run:
            self.run, self.highest, self.first, self.seen = run, number - 1, number, set()
        if number <= self.highest - self.window:
            self.counts["late"] += 1
            return False
        if number in self.seen:
            self.counts["duplicate"] += 1
            return False
        self.seen.add(number)
        if number > self.highest:
            self.counts["missing"] += number - self.highest - 1
            self.highest = number
        else:
            self.counts["out_of_order"] += 1
            self.counts["missing"] -= number >= self.first
        return True


SMALL_WINDOW = 16
# Offsets around a walking middle: in order, repeated, out of order, beyond the window of 16 in both directions.
FRAMES = st.tuples(st.integers(-24, 24), st.sampled_from([False] * 6 + [True]))
READS = st.tuples(st.sampled_from([1] * 12 + [2]), st.sampled_from([True] * 5 + [False]), st.lists(FRAMES, max_size=12))


@settings(max_examples=400, deadline=None)
@given(st.lists(READS, max_size=12), st.integers(0, 3 * SMALL_WINDOW))
def test_every_count_is_that_of_a_plain_reference_however_the_stream_is_cut(reads, middle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake_module, "WINDOW", SMALL_WINDOW)
        door, reference = intake(), Reference(SMALL_WINDOW)
        told_of = dict.fromkeys(("late", "bad_frame", "overflow"), 0)
        middle += SMALL_WINDOW
        for run, room, frames in reads:
            numbers = [max(middle + offset, 0) for offset, _ in frames]
            middle += len(frames)
            if not frames:
                continue
            flags_N = np.asarray([BAD if bad else 0 for _, bad in frames], np.uint8)
            whole = dataclasses.replace(block(numbers, run=run), flags_N=flags_N)
            expected = reference.read(run, [(n, bad) for n, (_, bad) in zip(numbers, frames, strict=True)], room)
            got, told = [], []
            for part in sound_or_bad(whole):
                if not room:
                    told += door.overflow(part)
                    continue
                arrival = door.admit(part)
                told += arrival.passed
                got += arrival.block.pulse_id_N.tolist()
                if len(arrival.block) == len(part):
                    assert arrival.came_with_NK[-1].tolist() == [door.counts[name] for name in CAME_WITH]
            assert got == expected
            assert door.counts == reference.counts
            for each in told:
                told_of[each.reason] += each.frames
        assert {name: count for name, count in door.counts.items() if name in told_of} == told_of
        total = door.counts["frames_in"]
        let_in = total - sum(door.counts[name] for name in ("duplicate", "late", "bad_frame", "overflow"))
        assert total == sum(len(frames) for _, _, frames in reads)
        assert let_in >= 0


def two_senders(rng):
    """Reads of two senders, as (who, pulse ids): one in front, one that was stuck at times and brings all of it later."""
    front, back, numbers = 0, 0, [0, 0]
    for _ in range(rng.integers(4, 24)):
        if rng.random() < 0.6 or back >= front - 3:
            front += int(rng.integers(1, 40))
            who, first, stop = 0, numbers[0], front
        else:
            back = int(rng.integers(back, front)) + 1
            who, first, stop = 1, numbers[1], back
        numbers[who] = stop
        ids = [3 * number + who for number in range(first, stop) if rng.random() < 0.9]
        while ids:
            size = int(rng.integers(1, 12))
            yield who, ids[:size]
            ids = ids[size:]
    yield 0, [3 * front, 3 * front + 3]


@pytest.mark.parametrize("part", range(5))
def test_missing_is_what_never_was_let_in_whenever_the_sender_in_front_has_its_say(part, monkeypatch):
    monkeypatch.setattr(intake_module, "WINDOW", SMALL_WINDOW)
    monkeypatch.setattr(intake_module, "LATE_IN_A_ROW", 4)
    returned = 0
    for seed in range(200):
        rng = np.random.default_rng([part, seed])
        door, first, top, let_in, held = intake(), None, 0, set(), []
        for who, ids in two_senders(rng):
            first = ids[0] if first is None else first
            if rng.random() < 0.2:
                # Small messages that wait come together.
                held += ids
                continue
            away = door.last is not None and door.last[1] < top
            came, held = admit(door, held + ids), []
            assert not let_in.intersection(came)
            assert len(set(came)) == len(came)
            let_in.update(came)
            top = max(top, *came, door.last[1])
            if who == 0:
                returned += away
                assert door.last[1] == top
                assert door.counts["missing"] == top - first + 1 - sum(number >= first for number in let_in)
    assert returned > 70


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 10_000), st.data())
def test_missing_is_the_span_less_what_came_whatever_the_order(order, gone, first, data):
    """All within a window: at the end only what never came is missing, from the first frame that came on."""
    came = [first + number for number in order if number not in gone]
    door, position = intake(), 0
    while position < len(came):
        size = data.draw(st.integers(1, len(came) - position))
        admit(door, came[position : position + size])
        position += size
    if came:
        begun = [number for number in came if number >= came[0]]
        assert door.counts["missing"] == max(came) - came[0] + 1 - len(begun)
        assert door.counts["frames_in"] == len(came)
        assert door.counts["duplicate"] == door.counts["late"] == 0


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=6))
def test_what_a_frame_came_with_does_not_depend_on_the_cut(blocks):
    whole, single = intake(), intake()
    rows, rows_single = [], []
    for ids in blocks:
        rows += whole.admit(block(ids)).came_with_NK.tolist()
        for pulse_id in ids:
            rows_single += single.admit(block([pulse_id])).came_with_NK.tolist()
    assert rows == rows_single
    assert whole.counts == single.counts
