from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from filmloop.edge.bell import Bell
from filmloop.edge.hosts import hand_over
from filmloop.edge.ring import PLACES, ROLES, FrameRing, RingLayout
from filmloop.testing.edge import FRAME_SHAPE, small_site

FRAME_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1]


@pytest.fixture
def make_ring():
    made = []

    def make(frames=10, labelled=False):
        made.append(FrameRing.new(RingLayout(frames=frames, frame_shape=FRAME_SHAPE, labelled=labelled)))
        return made[-1]

    yield make
    for ring in made:
        ring.close()


def layout(*, labelled=False, chunk=64, **edge):
    staging = {"frames_per_chunk": chunk, "frames_per_shard": 4 * chunk}
    return RingLayout.of(small_site(edge=edge, staging=staging), labelled=labelled)


def test_the_ring_is_as_long_as_the_site_allows_and_whole_chunks_where_that_is_possible():
    assert layout(ring_mb=1000 * FRAME_BYTES / 1e6).frames == 1000 // 64 * 64
    assert layout(ring_mb=1000 * FRAME_BYTES / 1e6, chunk=256).frames == 1000, "fewer than four chunks: not cut"
    assert layout(ring_mb=8000 * FRAME_BYTES / 1e6, chunk=7).frames == 8000 // 7 * 7


def test_labels_count_as_four_more_bytes_a_bin():
    assert layout(labelled=True, ring_mb=6400 * FRAME_BYTES / 1e6).frames == 6400 // 5 // 64 * 64


def test_the_ring_holds_two_batches_however_small_the_site_makes_it():
    assert layout(ring_mb=1e-6, batch_frames=32).frames == 64


def test_small_frames_make_no_endless_ring():
    assert layout(ring_mb=1e6).frames == 131_072


def test_a_span_ends_where_it_should_or_at_the_end_of_the_ring(make_ring):
    ring = make_ring(10)
    assert ring.span(0, 4) == slice(0, 4)
    assert ring.span(0, 10) == slice(0, 10)
    assert ring.span(7, 13) == slice(7, 10)
    assert ring.span(10, 13) == slice(0, 3)
    assert ring.span(10_000_000_000_003, 10_000_000_000_005) == slice(3, 5)
    assert ring.span(9, 10) == slice(9, 10)


def test_two_mappings_see_each_other_and_no_column_lies_over_another(make_ring):
    ring = make_ring(10, labelled=True)
    again = FrameRing(ring.layout, ring.fd, ring.bells)
    columns = [name for name, value in vars(ring).items() if isinstance(value, np.ndarray)]
    assert len(columns) == 13
    for number, name in enumerate(columns, 1):
        getattr(ring, name)[...] = number
    for number, name in enumerate(columns, 1):
        assert (getattr(again, name) == number).all(), name
    # The cells and boards behind the columns were not touched by any of them.
    for role in ROLES:
        assert set(getattr(again, role).read().values()) == {0}
    for place in PLACES:
        assert again.boards[place].read() == {}
    again.source.write({**again.source.read(), "head": 7})
    again.spec.write({"home": "/x"})
    assert ring.source.get("head") == 7
    assert ring.spec.read() == {"home": "/x"}


def test_a_process_that_takes_the_ring_over_sees_and_writes_the_same_memory(make_ring):
    ring = make_ring(10)
    ring.pulse_id_F[:] = np.arange(2**63, 2**63 + 10, dtype=np.uint64)
    code = (
        "import sys\nfrom filmloop.edge.hosts import take_over\nring = take_over(sys.argv[1])\n"
        "assert ring.pulse_id_F.tolist() == list(range(2**63, 2**63 + 10))\n"
        "ring.counts_FCE[9] = 200\nring.bells['staging'].ring()\n"
    )
    fds = (ring.fd, *(bell.fd for bell in ring.bells.values()))
    subprocess.run([sys.executable, "-c", code, hand_over(ring)], pass_fds=fds, check=True)
    assert (ring.counts_FCE[9] == 200).all()
    assert ring.bells["staging"].wait(0.001)
    assert not ring.bells["source"].wait(0.001)


def test_the_memory_is_gone_once_the_ring_is_closed_and_forgotten():
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum("filmloop-ring" in line for line in maps)

    gc.collect()
    before = mapped()
    ring = FrameRing.new(RingLayout(frames=1000, frame_shape=FRAME_SHAPE, labelled=False))
    assert mapped() == before + 1
    ring.close()
    ring.close()
    del ring
    gc.collect()
    assert mapped() == before


def test_what_a_child_is_given_is_one_word_of_plain_text(make_ring):
    word = hand_over(make_ring(10))
    assert json.loads(word)["frames"] == 10
    assert "\0" not in word
    assert len(word) < 4096


def test_a_bell_rung_before_anybody_waits_is_not_lost_and_rings_once():
    bell = Bell.new()
    bell.ring()
    bell.ring()
    assert bell.wait(0.001)
    assert not bell.wait(0.001)
    bell.close()
    bell.close()


def test_a_bell_wakes_at_once_and_a_short_wait_is_no_busy_loop():
    bell = Bell.new()
    threading.Timer(0.1, bell.ring).start()
    begun_s = time.monotonic()
    assert bell.wait(5.0)
    assert time.monotonic() - begun_s < 2.0
    begun_s = time.monotonic()
    for _ in range(20):
        assert not bell.wait(0.0)
    assert time.monotonic() - begun_s >= 0.02
    bell.close()
