from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from filmloop.core.documents import Accounting
from filmloop.core.types import BAD, FrameBlock
from filmloop.edge.intake import Intake, sound_or_bad

SHAPE = (2, 3)


def block(ids, run=1, shape=SHAPE, dtype=np.uint8, bad=()):
    ids_N = np.asarray(ids, np.uint64)
    return FrameBlock(
        run_number=run,
        pulse_id_N=ids_N,
        counts_NCE=np.zeros((len(ids_N), *shape), dtype),
        flags_N=np.where(np.isin(ids_N, list(bad)), BAD, 0).astype(np.uint8),
    )


def balanced(accounting: Accounting) -> bool:
    return accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())


def test_frames_in_order_are_all_let_in_and_gaps_are_missing():
    arrival = Intake(SHAPE, None).admit(block([5, 6, 9, 10]), Accounting())
    assert arrival.place_N is None
    assert arrival.upto(2, inferred=True) == Accounting(frames_in=2, frames_inferred=2)
    assert arrival.whole(inferred=True) == Accounting(frames_in=4, frames_inferred=4, frames_missing=2)


def test_frames_missing_between_two_blocks_and_two_lives_are_counted():
    intake = Intake(SHAPE, (1, 9))
    first = intake.admit(block([12, 13]), Accounting(frames_in=10))
    assert first.whole(inferred=True).frames_missing == 2
    second = intake.admit(block([20]), first.whole(inferred=True))
    assert second.whole(inferred=True).frames_missing == 2 + 6


def test_a_new_run_begins_wherever_it_likes():
    intake = Intake(SHAPE, (1, 9))
    assert intake.admit(block([3, 4], run=2), Accounting()).whole(inferred=True).frames_missing == 0
    assert intake.last == (2, 4)


def test_late_and_repeated_ids_are_dropped_as_duplicates():
    intake = Intake(SHAPE, (1, 9))
    arrival = intake.admit(block([9, 10, 10, 8, 12, 11]), Accounting())
    assert arrival.block.pulse_id_N.tolist() == [10, 12]
    whole = arrival.whole(inferred=True)
    assert whole.frames_dropped == {"duplicate": 4}
    assert whole.frames_unstaged == {"duplicate": 4}
    # 11 came, though late: it is counted as a duplicate and as never delivered in its place.
    assert whole.frames_missing == 1
    assert arrival.upto(1, inferred=True) == Accounting(
        frames_in=2, frames_inferred=1, frames_dropped={"duplicate": 1}, frames_unstaged={"duplicate": 1}
    )
    assert intake.last == (1, 12)


def test_nothing_but_duplicates_lets_nothing_in():
    intake = Intake(SHAPE, (1, 9))
    arrival = intake.admit(block([7, 8]), Accounting())
    assert len(arrival.block) == 0
    assert arrival.whole(inferred=True).frames_dropped == {"duplicate": 2}
    assert intake.last == (1, 9)


def test_frames_of_another_shape_or_type_are_bad_but_not_missing():
    intake = Intake(SHAPE, None)
    for wrong in (block([0, 1], shape=(2, 4)), block([2, 3], dtype=np.uint16)):
        arrival = intake.admit(wrong, Accounting())
        assert arrival.bad_N.tolist() == wrong.pulse_id_N.tolist()
        assert len(arrival.block) == 0
        assert arrival.whole(inferred=True).frames_dropped == {"bad_frame": 2}
    assert intake.admit(block([4]), Accounting()).whole(inferred=True).frames_missing == 0


def test_without_a_model_frames_are_dropped_from_inference_and_not_from_staging():
    arrival = Intake(SHAPE, None).admit(block([0, 1, 2]), Accounting())
    assert arrival.upto(2, inferred=False) == Accounting(frames_in=2, frames_dropped={"no_model": 2})


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_the_accounting_is_exact_at_every_frame_and_does_not_depend_on_the_cut(blocks, data):
    intake, taken, let_in = Intake(SHAPE, None), Accounting(), []
    for ids in blocks:
        arrival = intake.admit(block(ids), taken)
        for frames in range(len(arrival.block) + 1):
            part = arrival.upto(frames, inferred=data.draw(st.booleans()))
            assert balanced(part)
            assert part.frames_in - sum(part.frames_unstaged.values()) == len(let_in) + frames
        taken = arrival.whole(inferred=True)
        let_in += arrival.block.pulse_id_N.tolist()
    assert balanced(taken)
    assert taken.frames_in == sum(map(len, blocks))
    assert let_in == sorted(set(let_in))
    assert taken.frames_missing == let_in[-1] - let_in[0] + 1 - len(let_in)
    # The same frames one by one come to the same sums.
    single, alone = Intake(SHAPE, None), Accounting()
    for pulse_id in (pulse_id for ids in blocks for pulse_id in ids):
        alone = single.admit(block([pulse_id]), alone).whole(inferred=True)
    assert alone == taken


def test_a_block_is_cut_into_sound_and_damaged_parts_and_nothing_is_cut_without_need():
    parts = [part.pulse_id_N.tolist() for part in sound_or_bad(block(range(8), bad=(0, 3, 4, 7)))]
    assert parts == [[0], [1, 2], [3, 4], [5, 6], [7]]
    (whole,) = sound_or_bad(block(range(8)))
    assert whole.pulse_id_N.tolist() == list(range(8))


def test_damaged_frames_keep_their_place_in_the_stream():
    intake, taken, refused = Intake(SHAPE, (1, 4)), Accounting(), []
    # 5 and 8 never come, 10 comes twice.
    for part in sound_or_bad(block([6, 7, 9, 10, 10, 11], bad=(7, 9))):
        arrival = intake.admit(part, taken)
        refused += [] if arrival.bad_N is None else arrival.bad_N.tolist()
        taken = arrival.whole(inferred=True)
    assert refused == [7, 9]
    assert taken == Accounting(
        frames_in=6,
        frames_inferred=3,
        frames_dropped={"bad_frame": 2, "duplicate": 1},
        frames_unstaged={"bad_frame": 2, "duplicate": 1},
        frames_missing=2,
    )
    assert intake.last == (1, 11)


def test_a_damaged_frame_that_is_late_is_a_duplicate():
    intake = Intake(SHAPE, (1, 9))
    arrival = intake.admit(block([8, 10], bad=(8, 10)), Accounting())
    assert arrival.bad_N.tolist() == [10]
    assert arrival.whole(inferred=True).frames_dropped == {"bad_frame": 1, "duplicate": 1}
