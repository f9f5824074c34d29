"""A pool shows drawn frames again under new pulse ids; and the rate holds up to an instrument's."""

from __future__ import annotations

import time

import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.config.schema import SimulatorSource
from filmloop.ports.source import FrameSource
from filmloop.testing.contracts.source import collect, keys_of

SHAPE = (16, 128)


def opened(*, after: tuple[int, int] | None = None, shape: tuple[int, int] = SHAPE, **keys: object) -> FrameSource:
    source = build_source(SimulatorSource(**keys), shape)
    source.open(after=after)
    return source


def test_a_pool_shows_the_simulators_frames_again_and_again_under_new_ids() -> None:
    pool = opened(rate_hz=0, pool_frames=100, run_number=3, shape=(4, 16))
    blocks = collect(pool, 1050, max_frames=64)
    drawn = np.concatenate([b.counts_NCE for b in collect(opened(rate_hz=0, shape=(4, 16)), 100)])
    assert keys_of(blocks) == [(3, row) for row in range(1050)]
    shown = np.concatenate([block.counts_NCE for block in blocks])
    np.testing.assert_array_equal(shown, drawn[np.arange(1050) % 100])


def test_a_pool_goes_on_after_a_pulse_id_beyond_its_size() -> None:
    pool = opened(rate_hz=0, pool_frames=100, after=(1, 123_456_789), shape=(4, 16))
    (block,) = collect(pool, 3)
    first = collect(opened(rate_hz=0, pool_frames=100, shape=(4, 16)), 100)
    assert block.pulse_id_N.tolist() == [123_456_790, 123_456_791, 123_456_792]
    np.testing.assert_array_equal(block.counts_NCE[0], np.concatenate([b.counts_NCE for b in first])[90])


def test_blocks_of_a_pool_are_views_of_it_and_as_large_as_asked() -> None:
    pool = opened(rate_hz=0, pool_frames=4096)
    first, again = pool.read(4096, timeout_s=60), pool.read(4096)
    assert first is not None
    assert again is not None
    assert len(first) == len(again) == 4096
    assert np.shares_memory(first.counts_NCE, again.counts_NCE)


def test_a_large_pool_is_drawn_by_reads_that_come_back_in_time_and_its_clock_starts_then() -> None:
    begin_s = time.monotonic()
    pool = opened(rate_hz=1000, pool_frames=200_000)
    assert [len(pool.read(1024, timeout_s=0.05) or ()) for _ in range(3)] == [0, 0, 0]
    assert time.monotonic() - begin_s < 2.0, "the whole pool takes longer"
    pool.close()
    pool = opened(rate_hz=1000, pool_frames=8192, shape=(4, 16))
    while not (block := pool.read(8192, timeout_s=0.001)):
        assert block is not None
    assert block.pulse_id_N[0] == 0
    assert len(block) < 100, "what was due while it was drawn does not come at once"


@pytest.mark.parametrize("rate_hz", [1_000, 10_000, 50_000, 100_000, 300_000])
def test_a_pool_holds_its_rate_within_a_percent_on_a_small_part_of_a_core(rate_hz: int) -> None:
    pool = opened(rate_hz=rate_hz, pool_frames=4096)
    # The step in which frames come, 10 ms, is 1 % of a second: begin and end at a step.
    frames, end_s = 0, 0.0
    pool.read(4096, timeout_s=60)
    begin_s = time.monotonic()
    cpu_s = time.thread_time()
    while end_s - begin_s < 1.0:
        block = pool.read(4096)
        assert block is not None
        frames, end_s = frames + len(block), time.monotonic()
    cpu_s = time.thread_time() - cpu_s
    pool.close()
    assert frames / (end_s - begin_s) == pytest.approx(rate_hz, rel=0.011)
    assert cpu_s < 0.1


def test_the_reader_sets_how_long_frames_wait_for_others() -> None:
    pool = build_source(SimulatorSource(rate_hz=100_000, pool_frames=4096), SHAPE)
    pool.coalesce_s = 0.001
    pool.open(after=None)
    pool.read(4096, timeout_s=60)
    lengths = [len(pool.read(4096)) for _ in range(50)]
    pool.close()
    # 100 frames in a millisecond, more where the machine was busy; 1000 in the default 10 ms.
    assert 90 <= np.median(lengths) <= 500
