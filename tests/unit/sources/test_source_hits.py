"""Hit lists become the counts that a histogram of each frame alone gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source
from filmloop.adapters.sources.hits import dense_counts, flat_bins, padded_hits, ragged_counts
from filmloop.config.schema import ReplaySource
from filmloop.core.errors import DataError
from filmloop.core.types import BAD, SATURATED
from filmloop.testing.contracts.source import collect

SHAPE = (4, 16)


def example_hits(frames: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat bins, hits of each frame, and the counts that a histogram of each frame alone gives."""
    rng = np.random.default_rng(5)
    count_N = rng.poisson(12, frames)
    bin_K = rng.integers(0, 64, count_N.sum())
    parts = np.split(bin_K, np.cumsum(count_N)[:-1])
    return bin_K, count_N, np.stack([np.histogram(part, np.arange(65))[0].reshape(SHAPE) for part in parts])


def test_flat_hits_are_counted_frame_by_frame() -> None:
    bin_K, count_N, counts_NCE = example_hits()
    dense_NCE, flags_N = dense_counts(flat_bins(bin_K.astype(np.uint16), SHAPE), count_N, SHAPE)
    np.testing.assert_array_equal(dense_NCE, counts_NCE)
    assert not flags_N.any()


def test_pairs_of_channel_and_energy_are_counted_and_energies_are_rounded_down() -> None:
    bin_K, count_N, counts_NCE = example_hits()
    pairs = np.column_stack((bin_K // 16, bin_K % 16 + 0.999))
    np.testing.assert_array_equal(dense_counts(flat_bins(pairs, SHAPE), count_N, SHAPE)[0], counts_NCE)


def test_frames_without_a_hit_are_empty_at_begin_middle_and_end() -> None:
    dense_NCE, _ = dense_counts(np.array([3, 3]), np.array([0, 2, 0]), SHAPE)
    assert dense_NCE.sum(axis=(1, 2)).tolist() == [0, 2, 0]
    assert dense_counts(np.zeros(0, np.int64), np.zeros(0, np.int64), SHAPE)[0].shape == (0, *SHAPE)


def test_more_than_255_hits_in_a_bin_are_clipped_and_flagged() -> None:
    dense_NCE, flags_N = dense_counts(np.full(255 + 256, 7), np.array([255, 256]), SHAPE)
    assert dense_NCE.max(axis=(1, 2)).tolist() == [255, 255]
    assert flags_N.tolist() == [0, SATURATED]


@pytest.mark.parametrize("hit", [64, -1, np.nan, 1e30])
def test_a_hit_outside_the_frame_spoils_its_frame_alone(hit: float) -> None:
    bins = flat_bins(np.array([1, 2, hit, 3, 4]), SHAPE)
    dense_NCE, flags_N = dense_counts(bins, np.array([1, 3, 1]), SHAPE)
    assert flags_N.tolist() == [0, BAD, 0]
    assert dense_NCE.sum(axis=(1, 2)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_hit_outside_the_frame_spoils_its_frame_alone_in_every_number_type(dtype: str, pairs: bool) -> None:
    hits = np.array([1, 2, 100, 3, 4], dtype)
    bins = flat_bins(np.column_stack((np.zeros_like(hits), hits)) if pairs else hits, SHAPE)
    assert bins.tolist() == [1, 2, -1, 3, 4]
    dense_NCE, flags_N = dense_counts(bins, np.array([1, 3, 1]), SHAPE)
    assert flags_N.tolist() == [0, BAD, 0]
    assert dense_NCE.sum(axis=(1, 2)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32])
@pytest.mark.parametrize("counted", [True, False])
def test_padded_hits_are_those_of_the_list(dtype: type, counted: bool) -> None:
    bin_K, count_N, _ = example_hits()
    padded = np.full((len(count_N), count_N.max()), -999, dtype)
    padded[np.arange(count_N.max()) < count_N[:, None]] = bin_K
    if dtype is np.float32 and not counted:
        padded[padded < 0] = np.nan
    found_K, found_N, bad_N = padded_hits(padded, count_N if counted else None, SHAPE)
    np.testing.assert_array_equal(found_K, bin_K)
    np.testing.assert_array_equal(found_N, count_N)
    assert not bad_N.any()


def test_a_number_of_hits_that_cannot_be_spoils_its_event_alone() -> None:
    _, count_N, bad_N = padded_hits(np.zeros((3, 5), np.int16), np.array([5, 6, -1]), SHAPE)
    assert (count_N.tolist(), bad_N.tolist()) == ([5, 0, 0], [False, True, True])


@pytest.mark.parametrize("offsets", [[], [1, 5], [0, 4], [0, 3, 2, 5], [0.0, 5.0], [[0, 5]]])
def test_offsets_that_do_not_lead_through_the_hits_are_refused(offsets: list[object]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        ragged_counts(np.array(offsets), 5)


def hit_file(path: Path, **change: object) -> Path:
    bin_K, count_N, _ = example_hits()
    arrays = {"hits": bin_K, "offsets": np.concatenate([[0], np.cumsum(count_N)]), "frame_shape": SHAPE, **change}
    with h5py.File(path, "w") as file:
        file["hits"], file["offsets"] = arrays["hits"], arrays["offsets"]
        file["hits"].attrs["frame_shape"] = arrays["frame_shape"]
    return path


def test_an_hdf5_file_of_hit_lists_replays_as_counts(tmp_path: Path) -> None:
    source = build_source(ReplaySource(path=str(hit_file(tmp_path / "x.h5"))), SHAPE)
    source.open(after=(1, 9))
    blocks = collect(source, 200, max_frames=33)
    assert np.concatenate([block.pulse_id_N for block in blocks]).tolist() == list(range(10, 100))
    np.testing.assert_array_equal(np.concatenate([b.counts_NCE for b in blocks]), example_hits()[2][10:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frame_shape": (16,)}, "frame_shape"),
        ({"offsets": np.array([0, 5, 3])}, "offsets"),
        ({"hits": np.zeros((5, 3))}, "hits are"),
    ],
)
def test_a_file_of_hit_lists_that_do_not_fit_says_what_is_wrong(tmp_path: Path, change: dict, says: str) -> None:
    path = hit_file(tmp_path / "x.h5", **change)
    with pytest.raises(DataError, match=says):
        build_source(ReplaySource(path=str(path)), SHAPE).open(after=None)


def test_shots_of_cookiesimslim_without_their_image_have_their_hits_counted(tmp_path: Path, sample_data: Path) -> None:
    original = sample_data / "cookiesimslim_16ch_native.h5"
    path = shutil.copyfile(original, tmp_path / "hits.h5")
    with h5py.File(path, "r+") as file:
        for shot in file.values():
            del shot["Ximg"]
    source = build_source(ReplaySource(path=str(path)), (16, 128))
    source.open(after=None)
    counted = np.concatenate([block.counts_NCE for block in collect(source, 400)])
    with h5py.File(original) as file:
        images = np.stack([file[name]["Ximg"][()] for name in sorted(file)])
    # The file rounds energies to float32: two of its 260,000 hits come to lie on the next bin's edge.
    assert np.count_nonzero(counted != images) == 4
    np.testing.assert_array_equal(counted.sum(axis=2), images.sum(axis=2))
