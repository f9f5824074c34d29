from __future__ import annotations

import numpy as np
import pytest

from filmloop.config.schema import DriftSection
from filmloop.drift.beam import Sieve, least_hits
from filmloop.drift.moments import moments_of
from filmloop.drift.reference import Reference

SECTION = DriftSection(window_frames=256)


def show(sieve, light_N, step=8, least=5.0):
    """Frames of 40 counts, or none, some at a time; the windows they made."""
    windows = []
    for start in range(0, len(light_N), step):
        light = np.asarray(light_N[start : start + step], np.uint8)
        counts_NCE = np.broadcast_to(light[:, None, None], (len(light), 4, 10))
        windows.append(sieve.take(moments_of(counts_NCE), np.zeros(len(light)), least))
    return [window for window in windows if window is not None]


def test_frames_with_light_make_windows_as_they_come():
    (window,) = show(Sieve(SECTION), [1] * 500)
    assert window.frames == 256
    assert window.hits_C.tolist() == [10.0] * 4


@pytest.mark.parametrize("dark_from", [64, 67, 79])
def test_no_dark_frame_is_left_wherever_in_a_block_the_beam_goes_and_comes(dark_from):
    light_N = np.ones(600)
    light_N[dark_from : dark_from + 150] = 0
    sieve = Sieve(SECTION)
    (window,) = show(sieve, light_N)
    assert window.hits_C.tolist() == [10.0] * 4
    assert not sieve.off


def test_the_beam_is_off_after_half_a_window_and_on_with_the_first_light():
    sieve = Sieve(SECTION)
    show(sieve, [0] * 120)
    assert not sieve.off
    show(sieve, [0] * 8)
    assert sieve.off
    assert (sieve.hits, sieve.frames) == (0.0, 0)
    show(sieve, [1] * 16)
    assert not sieve.off


def test_single_frames_without_a_count_are_part_of_a_beam():
    (window,) = show(Sieve(SECTION), [0, 1, 0, 0] * 64)
    assert window.hits_C.tolist() == [2.5] * 4


def test_light_is_what_the_reference_had_a_twentieth_of(beam):
    reference = Reference([beam.window(0)])
    assert least_hits(reference, 16) == pytest.approx(0.05 * beam.counts(0).sum() / 512)
    assert least_hits(None, 16) == pytest.approx(1.6)
