from __future__ import annotations

import numpy as np
import pytest

from filmloop.core.holdout import held_out, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    # The reference implementation (Vigna, splitmix64.c) seeded with 1234567: its state steps by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + n * gamma) % 2**64 for n in range(5)], np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("permille", [1, 100, 500])
def test_about_so_many_frames_are_held_out(permille: int) -> None:
    frames = 200_000
    share = held_out(np.arange(frames, dtype=np.uint64), permille).mean()
    sigma = np.sqrt(permille / 1000 * (1 - permille / 1000) / frames)
    assert abs(share - permille / 1000) < 4 * sigma


def test_a_frame_is_held_out_whatever_comes_with_it() -> None:
    ids = np.arange(5000, dtype=np.uint64)
    alone = np.concatenate([held_out(ids[n : n + 1], 100) for n in range(5000)])
    assert np.array_equal(alone, held_out(ids, 100))


def test_a_larger_share_holds_all_of_a_smaller_one() -> None:
    ids = np.arange(20_000, dtype=np.uint64)
    assert not (held_out(ids, 50) & ~held_out(ids, 100)).any()


def test_every_second_pulse_is_no_worse_a_sample() -> None:
    # An accelerator that delivers every 2nd, 5th or 1000th id must not change the share.
    for step in (2, 5, 1000):
        share = held_out(np.arange(0, 50_000 * step, step, dtype=np.uint64), 100).mean()
        assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 50_000)
