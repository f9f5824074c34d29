from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from filmloop.config.schema import EdgeSection
from filmloop.core.errors import DataError
from filmloop.core.types import FrameBlock
from filmloop.edge.ring import CAME_WITH, NOTES, FrameRing, RingLayout
from filmloop.edge.stages.source import SourceStage
from filmloop.edge.tally import OVERFLOW
from filmloop.testing.edge import FRAME_SHAPE, ScriptedSource, blocks_of, pool
from rigs.waiting import until

RING = 128


@pytest.fixture
def ring():
    ring = FrameRing.new(RingLayout(frames=RING, frame_shape=FRAME_SHAPE, labelled=True))
    yield ring
    ring.close()


def stage(ring, script, *, live=False, until=None, stay=False, source=None):
    source = source or ScriptedSource(script, labelled=True, live=live)
    return SourceStage(ring, source, EdgeSection(), live=live, until=until, stay=stay)


@contextmanager
def working(stage):
    """The stage in a thread; raises what it raised. It is told to stop at the end."""
    failures = []

    def work():
        try:
            stage.main()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        stage.ring.control.write({"stop": 1, "hurry": 0})
        stage.ring.bells["source"].ring()
        thread.join(10)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def take(ring, frames):
    """What staging does with the ring: these places are free again."""
    ring.staging.write({**ring.staging.read(), "taken": ring.staging.get("taken") + frames})
    ring.bells["source"].ring()


def notes(ring, first=0):
    return ring.notes[np.arange(first, ring.source.get("notes")) % NOTES].tolist()


def test_everything_about_a_frame_is_in_the_ring_when_the_head_passes_it(ring):
    script = [(7, [0, 1, 1, 4]), (8, [2])]
    stage(ring, script).main()
    assert ring.source.get("ended") == 1
    assert ring.source.get("head") == 4
    assert ring.pulse_id_F[:4].tolist() == [0, 1, 4, 2]
    assert ring.run_number_F[:4].tolist() == [7, 7, 7, 8]
    assert (ring.counts_FCE[:4] == pool()[[0, 1, 4, 2]]).all()
    assert (ring.label_FCE[:4] == pool()[[0, 1, 4, 2]]).all()
    frames_in, missing, duplicate = (CAME_WITH.index(name) for name in ("frames_in", "missing", "duplicate"))
    assert ring.came_with_FK[:4, frames_in].tolist() == [1, 2, 4, 5]
    assert ring.came_with_FK[:4, missing].tolist() == [0, 0, 2, 2]
    assert ring.came_with_FK[:4, duplicate].tolist() == [0, 0, 1, 1]
    assert (ring.arrived_ns_F[:4] > 0).all()


def test_a_source_that_can_wait_waits_for_room_and_loses_nothing(ring):
    with working(stage(ring, blocks_of(1000))):
        got = []
        while len(got) < 1000:
            until(lambda: ring.source.get("head") > ring.staging.get("taken"))
            taken, head = ring.staging.get("taken"), ring.source.get("head")
            assert head - taken <= RING
            places = ring.span(taken, head)
            got += ring.pulse_id_F[places].tolist()
            take(ring, places.stop - places.start)
        until(lambda: ring.source.get("ended"))
    assert got == list(range(1000))
    assert ring.source.get("overflow") == 0


def test_a_live_source_is_read_though_there_is_no_room_and_what_it_lets_go_is_told_exactly(ring):
    """More reads than there are notes: what is let go in a row is one note, so none is overwritten unread."""
    reads = NOTES + 500
    with working(stage(ring, blocks_of(RING + 2 * reads, size=2), live=True)):
        until(lambda: ring.source.get("ended"))
    assert ring.source.get("overflow") == 2 * reads
    (told,) = notes(ring)
    assert told == [RING, 1, RING, RING + 2 * reads - 1, 2 * reads, CAME_WITH.index(OVERFLOW)]
    assert ring.pulse_id_F.tolist() == list(range(RING)), "what waits in the ring is not overwritten"


def test_what_is_let_go_again_later_is_another_note(ring):
    source = ScriptedSource(blocks_of(RING + 10, size=2), live=True, labelled=True, at_end=lambda: True)
    with working(stage(ring, [], live=True, source=source)):
        until(lambda: ring.source.get("overflow") == 10)
        take(ring, 2)
        source._todo.append((1, [RING + 10, RING + 11]))
        until(lambda: ring.source.get("head") == RING + 2)
        source._todo.append((1, [RING + 12]))
        until(lambda: ring.source.get("overflow") == 11)
    assert [note[:5] for note in notes(ring)] == [
        [RING, 1, RING, RING + 9, 10], [RING + 2, 1, RING + 12, RING + 12, 1],
    ]  # fmt: skip


def test_an_id_that_no_machine_counts_to_is_told_and_stops_nothing(ring):
    stage(ring, [(1, [1, 2**64 - 1, 2]), (1, [2**63 + 5, 3])]).main()
    assert ring.source.get("bad_frame") == 2
    assert ring.pulse_id_F[:3].tolist() == [1, 2, 3]
    assert ring.notes[:2, 2].astype(np.uint64).tolist() == [2**64 - 1, 2**63 + 5]


def test_a_run_that_no_shard_could_be_named_after_is_told_and_stops_nothing(ring):
    stage(ring, [(1, [1]), (10**6, [2, 3]), (2**64 - 1, [4]), (1, [5])]).main()
    assert ring.source.get("bad_frame") == 3
    assert ring.run_number_F[:2].tolist() == [1, 1]
    assert ring.pulse_id_F[:2].tolist() == [1, 5]
    told = [ring.read_note(number)[1] for number in range(2)]
    assert [(each.run_number, each.frames) for each in told] == [(10**6, 2), (2**64 - 1, 1)]


def test_enough_frames_are_enough(ring):
    stage(ring, blocks_of(1000), until=70).main()
    assert ring.source.get("frames_in") == ring.source.get("head") == 70
    assert ring.source.get("ended") == 1


def test_at_the_end_of_the_data_it_stays_if_it_is_told_to(ring):
    with working(stage(ring, blocks_of(10), stay=True)):
        until(lambda: ring.source.get("drained"))
        assert ring.source.get("ended") == 0
    assert ring.source.get("ended") == 1


def test_a_life_after_a_kill_goes_on_behind_the_newest_frame_and_knows_what_came(ring):
    first = stage(ring, [(1, [0, 1, 2, 5, 6])])
    first._open()
    block = first._source.read(100)
    first._let_in(block, room=True)
    # Killed within the next frames: they lie in the ring, no cursor has passed them.
    torn = FrameBlock(
        run_number=1, pulse_id_N=np.array([3, 7], np.uint64), counts_NCE=pool()[:2], flags_N=np.zeros(2, np.uint8)
    )
    first._put(first._intake.admit(torn), 0)
    again = ScriptedSource([(1, [6, 3, 7, 4, 1])], live=True, labelled=True)
    stage(ring, [], live=True, source=again).main()
    assert again.opened == [(1, 6)]
    assert ring.pulse_id_F[: ring.source.get("head")].tolist() == [0, 1, 2, 5, 6, 3, 7, 4]
    assert ring.source.get("duplicate") == 2
    assert ring.source.get("missing") == 0
    assert ring.source.get("frames_in") == 10


def test_a_life_after_a_kill_takes_nothing_again_that_the_ring_holds_no_more(ring):
    with working(stage(ring, blocks_of(RING + 40))):
        until(lambda: ring.source.get("head") == RING)
        take(ring, RING)
        until(lambda: ring.source.get("ended"))
    ring.source.write({**ring.source.read(), "ended": 0})
    ring.control.write({"stop": 0, "hurry": 0})
    take(ring, 40)
    head = ring.source.get("head")
    stage(ring, [(1, [5, 39, RING + 39, RING + 40])], live=True).main()
    assert ring.source.get("duplicate") == 3
    assert ring.source.get("head") == head + 1


def test_what_a_source_cannot_read_ends_the_stage_with_its_error_and_closes_it(ring):
    class Absent(ScriptedSource):
        closed = 0

        def open(self, *, after):
            raise DataError("No recording at /nowhere.")

        def close(self):
            self.closed += 1

    source = Absent([])
    with pytest.raises(DataError, match="nowhere"):
        stage(ring, [], source=source).main()
    assert source.closed == 1
    assert ring.source.get("ended") == 0, "whether the edge ends is not for the stage to say"
