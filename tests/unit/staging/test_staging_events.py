"""Counts as a list of hits and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from filmloop.core.errors import ConfigError, DataError
from filmloop.staging.events import check_events, pack_events, unpack_events


def test_a_hit_is_the_step_from_the_one_before_and_a_count_of_three_is_three_hits() -> None:
    counts_NCE = np.zeros((3, 2, 4), np.uint8)
    counts_NCE[0, 0, 2], counts_NCE[0, 1, 3] = 3, 1
    counts_NCE[2, 0, 0], counts_NCE[2, 0, 1] = 2, 1
    hits, offsets_N1 = pack_events(counts_NCE)
    assert hits.tolist() == [2, 0, 0, 5, 0, 0, 1]
    assert offsets_N1.tolist() == [0, 4, 4, 7]
    assert (hits.dtype, offsets_N1.dtype) == (np.uint16, np.uint64)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(
        np.uint8,
        # Around the 128 frames that are packed at a time.
        st.tuples(st.sampled_from([0, 1, 2, 127, 128, 129, 300]), st.integers(1, 3), st.integers(1, 5)),
        elements=st.sampled_from([0, 0, 0, 1, 2, 255]),
        fill=st.just(0),
    )
)
def test_any_counts_come_back(counts_NCE: np.ndarray) -> None:
    shape = counts_NCE.shape[1:]
    hits, offsets_N1 = pack_events(counts_NCE)
    assert offsets_N1[-1] == len(hits) == counts_NCE.sum()
    np.testing.assert_array_equal(unpack_events(hits, offsets_N1, shape), counts_NCE)
    # A part of a longer list: offsets that begin above 0.
    half = len(counts_NCE) // 2
    np.testing.assert_array_equal(unpack_events(hits, offsets_N1[half:], shape), counts_NCE[half:])


def test_the_last_bin_of_the_largest_frame_comes_back() -> None:
    counts_NCE = np.zeros((2, 256, 256), np.uint8)
    counts_NCE[:, 255, 255] = 1
    hits, offsets_N1 = pack_events(counts_NCE)
    assert hits.tolist() == [65535, 65535]
    np.testing.assert_array_equal(unpack_events(hits, offsets_N1, (256, 256)), counts_NCE)
    with pytest.raises(ConfigError, match="65792 bins"):
        pack_events(np.zeros((1, 256, 257), np.uint8))


def test_a_part_of_a_wider_array_is_packed_as_its_copy() -> None:
    wide = np.random.default_rng(1).poisson(0.5, (10, 4, 16)).astype(np.uint8)
    view = wide[:, :, ::2]
    for ours, theirs in zip(pack_events(view), pack_events(view.copy()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_bin_with_more_than_255_hits_is_clipped_as_dense_counts_are() -> None:
    hits = np.zeros(700, np.uint16)
    hits[0], hits[300] = 3, 2
    counts_NCE = unpack_events(hits, np.array([0, 700], np.uint64), (2, 4))
    assert counts_NCE.reshape(-1).tolist() == [0, 0, 0, 255, 0, 255, 0, 0]


U16, U64 = np.uint16, np.uint64


@pytest.mark.parametrize(
    ("hits", "offsets"),
    [
        (np.array([8], U16), np.array([0, 1], U64)),
        (np.array([1, 4, 4], U16), np.array([0, 1, 3], U64)),
        # The steps add up to 2**32 + 1: a sum of 32 bits would call that bin 1.
        (np.array([65535] * 65537 + [2], U16), np.array([0, 65538], U64)),
        (np.array([1, 1], U16), np.array([0, 2, 1], U64)),
        (np.array([1, 1], U16), np.array([0, 3], U64)),
        (np.array([1, 1], U16), np.array([], U64)),
        (np.array([1, 1], np.uint8), np.array([0, 2], U64)),
        (np.array([1, 1], U16), np.array([0, 2], np.int64)),
    ],
    ids=["bin 8", "bin 8 by steps", "a sum that wraps", "falling", "beyond", "no offset", "uint8", "int64"],
)
def test_what_is_no_event_list_of_its_frames_is_refused(hits: np.ndarray, offsets: np.ndarray) -> None:
    with pytest.raises(DataError):
        check_events(hits, offsets, (2, 4))
    with pytest.raises(DataError):
        unpack_events(hits, offsets, (2, 4))
