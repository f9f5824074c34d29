"""Recorded frames: every schema gives exactly what its file holds, and bad files say what is wrong with them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from filmloop.adapters.sources.build import build_source, stream_name
from filmloop.adapters.sources.replay import default_stream, read_labelled
from filmloop.config.schema import ReplaySource
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.types import BAD, SATURATED, FrameBlock
from filmloop.ports.source import FrameSource
from filmloop.testing.contracts.source import collect, keys_of
from filmloop.testing.shards import example_block, write_shard

SHAPE = (4, 16)


def opened(path: Path, *, after: tuple[int, int] | None = None, **keys: object) -> FrameSource:
    source = build_source(ReplaySource(path=str(path), **keys), SHAPE)
    source.open(after=after)
    return source


def stacked(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def counts_of(blocks: list[FrameBlock]) -> np.ndarray:
    return np.concatenate([block.counts_NCE for block in blocks])


def test_cookienetae_arrays_follow_each_other_with_rows_as_pulse_ids(tmp_path: Path) -> None:
    counts = np.random.default_rng(1).poisson(2, (30, *SHAPE)).astype(np.int16)
    labels = np.random.default_rng(2).random((30, *SHAPE)).astype(np.float16)
    path = stacked(
        tmp_path / "set.h5", X_test=counts[:10], Y_test=labels[:10], X_train=counts[10:], Y_train=labels[10:]
    )
    source = opened(path, use_labels=True, run_number=5)
    blocks = collect(source, 100)
    source.close()
    assert keys_of(blocks) == [(5, row) for row in range(30)]
    np.testing.assert_array_equal(counts_of(blocks), counts)
    np.testing.assert_array_equal(np.concatenate([block.label_NCE for block in blocks]), labels.astype(np.float32))


def test_single_shots_come_in_sorted_order_of_their_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "shots.h5", "w", track_order=True) as file:
        for name, value in {"c": 3, "a": 1, "b": 2}.items():
            file[f"{name}/Ximg"] = np.full(SHAPE, value, np.uint16)
            file[f"{name}/Ypdf"] = np.full(SHAPE, value / 2, np.float32)
    counts_NCE, label_NCE, pulse_id_N = read_labelled(tmp_path / "shots.h5")
    assert counts_NCE[:, 0, 0].tolist() == [1, 2, 3]
    assert label_NCE is not None
    assert label_NCE[:, 0, 0].tolist() == [0.5, 1.0, 1.5]
    assert pulse_id_N.tolist() == [0, 1, 2]


def test_shards_come_with_the_pulse_ids_and_flags_that_were_stored(tmp_path: Path) -> None:
    first = example_block(20, first_pulse_id=100, labelled=True)
    second = example_block(10, first_pulse_id=90, run_number=4, labelled=True)
    write_shard(tmp_path, first, seq=0)
    write_shard(tmp_path, second, seq=1)
    source = opened(tmp_path, use_labels=True)
    blocks = collect(source, 100)
    source.close()
    # The stored runs 1 and 4 follow each other as the site's runs 1 and 2.
    assert keys_of(blocks) == [(1, 100 + row) for row in range(20)] + [(2, 90 + row) for row in range(10)]
    np.testing.assert_array_equal(counts_of(blocks), np.concatenate([first.counts_NCE, second.counts_NCE]))
    np.testing.assert_array_equal(np.concatenate([block.flags_N for block in blocks])[:20], first.flags_N)


def test_a_loop_is_a_new_run_with_the_same_pulse_ids(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=example_block(3).counts_NCE)
    source = opened(path, loop=True, run_number=7)
    blocks = collect(source, 8)
    source.close()
    assert keys_of(blocks) == [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1), (8, 2), (9, 0), (9, 1)]
    assert all(len({block.run_number}) == 1 for block in blocks)


def test_a_loop_begins_with_its_first_run_again_when_no_run_numbers_are_left(tmp_path: Path) -> None:
    for seq, run in enumerate((4, 9)):
        write_shard(tmp_path, example_block(2, run_number=run), seq=seq)
    source = opened(tmp_path, loop=True, run_number=999_995)
    blocks = collect(source, 10)
    source.close()
    # 999,999 stays free: a pass takes two numbers.
    runs = [999_995, 999_996, 999_997, 999_998, 999_995]
    assert keys_of(blocks) == [(run, pulse_id) for run in runs for pulse_id in (0, 1)]
    again = opened(tmp_path, loop=True, run_number=999_995, after=(999_998, 0))
    assert keys_of(collect(again, 2)) == [(999_998, 1), (999_995, 0)]


def test_a_replay_that_has_too_few_run_numbers_left_says_which_to_set(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=example_block(3).counts_NCE)
    assert keys_of(collect(opened(path, run_number=999_999), 3)) == [(999_999, 0), (999_999, 1), (999_999, 2)]
    with pytest.raises(ConfigError) as error:
        opened(path, run_number=999_999, loop=True)
    assert "run_number to 999998 or less" in error.value.hint


def test_a_replay_that_looped_before_and_loops_no_more_is_at_its_end(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=example_block(3).counts_NCE)
    source = opened(path, after=(3, 1), run_number=1)
    assert [source.read(5), source.read(5)] == [None, None]


def test_a_run_number_of_the_past_begins_anew(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=example_block(3).counts_NCE)
    assert keys_of(collect(opened(path, after=(1, 2), run_number=2), 9)) == [(2, 0), (2, 1), (2, 2)]


def test_counts_above_255_are_clipped_and_flagged(tmp_path: Path) -> None:
    counts = np.zeros((3, *SHAPE), np.int16)
    counts[1, 2, 3], counts[2, 0, 0] = 256, 255
    (block,) = collect(opened(stacked(tmp_path / "x.h5", Ximg=counts)), 3)
    assert block.counts_NCE.max(axis=(1, 2)).tolist() == [0, 255, 255]
    assert block.flags_N.tolist() == [0, SATURATED, 0]


def test_whole_numbers_stored_as_floats_are_counts(tmp_path: Path) -> None:
    counts = example_block(3).counts_NCE
    np.testing.assert_array_equal(
        counts_of(collect(opened(stacked(tmp_path / "x.h5", Ximg=counts.astype(np.float32))), 3)), counts
    )


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 0.5])
def test_counts_that_are_no_counts_are_flagged_and_the_others_come(tmp_path: Path, value: float, caplog) -> None:
    counts = np.ones((5, *SHAPE), np.float32)
    counts[3, 1, 1], counts[4, 0, 0] = value, 300
    path = stacked(tmp_path / "x.h5", X_a=np.ones((4, *SHAPE), np.int16), X_b=counts)
    blocks = collect(opened(path), 9)
    assert keys_of(blocks) == [(1, row) for row in range(9)]
    assert np.concatenate([block.flags_N for block in blocks]).tolist() == [0] * 7 + [BAD, SATURATED]
    assert counts_of(blocks).sum(axis=(1, 2)).tolist() == [64] * 7 + [0, 63 + 255]
    with caplog.at_level(logging.WARNING, "filmloop"):
        counts_NCE, _, pulse_id_N = read_labelled(path)
    assert pulse_id_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert len(counts_NCE) == 8
    assert "1 of 9 frames are damaged, the first is 7" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "value"), [("f2", np.nan), ("f2", -np.inf), ("f4", 65_505), ("f8", 1e300), ("i8", -70_000)]
)
def test_a_label_that_a_shard_cannot_hold_spoils_its_frame_alone_where_labels_are_asked_for(
    tmp_path: Path, dtype: str, value: float
) -> None:
    labels = np.full((5, *SHAPE), 65_504, dtype)
    labels[2, 1, 1] = value
    path = stacked(tmp_path / "x.h5", Ximg=np.zeros((5, *SHAPE), np.uint8), Ypdf=labels)
    assert collect(opened(path), 5)[0].flags_N.tolist() == [0] * 5
    assert collect(opened(path, use_labels=True), 5)[0].flags_N.tolist() == [0, 0, BAD, 0, 0]


def test_an_array_without_any_counts_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    rates = np.random.default_rng(1).random((50, *SHAPE)).astype(np.float32)
    path = stacked(tmp_path / "x.h5", Ximg=rates)
    with pytest.raises(DataError, match="none of 16 frames of /Ximg holds counts"):
        opened(path)


def test_frames_of_another_shape_than_the_site_name_the_keys_to_set(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=np.zeros((5, 8, 32), np.uint8))
    with pytest.raises(ConfigError) as error:
        opened(path)
    assert "channels = 8 and energy_bins = 32" in error.value.hint


def test_labels_that_are_not_there_name_the_key_to_set(tmp_path: Path) -> None:
    path = stacked(tmp_path / "x.h5", Ximg=np.zeros((5, *SHAPE), np.uint8))
    with pytest.raises(DataError) as error:
        opened(path, use_labels=True)
    assert "use_labels = false" in error.value.hint
    assert read_labelled(path)[1] is None


def _nothing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("no HDF5 at all")


def _truncated(path: Path) -> None:
    stacked(path, Ximg=np.zeros((50, *SHAPE), np.uint8))
    os.truncate(path, path.stat().st_size // 2)


def _other_names(path: Path) -> None:
    stacked(path, waveform=np.zeros((5, 40)), energy=np.zeros(5))


def _empty_file(path: Path) -> None:
    stacked(path)


def _no_frames(path: Path) -> None:
    stacked(path, Ximg=np.zeros((0, *SHAPE), np.uint8))


def _flat_counts(path: Path) -> None:
    stacked(path, Ximg=np.zeros((5, 64), np.uint8))


def _fewer_labels(path: Path) -> None:
    stacked(path, X_a=np.zeros((5, *SHAPE), np.uint8), Y_a=np.zeros((4, *SHAPE), np.uint8))


def _two_shapes(path: Path) -> None:
    stacked(path, X_a=np.zeros((5, *SHAPE), np.uint8), X_b=np.zeros((5, 8, 8), np.uint8))


def _text_array(path: Path) -> None:
    stacked(path, Ximg=np.full((5, *SHAPE), b"one"))


def _link_to_nothing(path: Path) -> None:
    stacked(path, X_a=h5py.SoftLink("/nowhere"))


def _scalar_counts(path: Path) -> None:
    stacked(path, X_a=np.uint8(3))


def _no_values(path: Path) -> None:
    stacked(path, X_a=h5py.Empty("u1"))


def _group_of_labels(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["X_a"] = np.zeros((5, *SHAPE), np.uint8)
        file.create_group("Y_a")


def _text_labels(path: Path) -> None:
    stacked(path, X_a=np.zeros((5, *SHAPE), np.uint8), Y_a=np.full((5, *SHAPE), b"one"))


def hit_lists(path: Path, offsets: object, frame_shape: object) -> None:
    stacked(path, hits=np.zeros(3, np.uint16), offsets=offsets)
    with h5py.File(path, "r+") as file:
        file["hits"].attrs["frame_shape"] = frame_shape


def _scalar_offsets(path: Path) -> None:
    hit_lists(path, 3, SHAPE)


def _text_shape(path: Path) -> None:
    hit_lists(path, np.array([0, 3]), "4 x 16")


def _endless_frames(path: Path) -> None:
    hit_lists(path, np.array([0, 3]), (2**31, 2**31))


def _shot_linked_to_nothing(path: Path) -> None:
    stacked(path, **{"shot/Ximg": h5py.SoftLink("/nowhere")})


def _shot_without_energies(path: Path) -> None:
    stacked(path, **{f"shot/{name}": np.array([0, 1]) for name in ("Xhits", "Xaddresses", "Xnedges")})


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _two_streams(path: Path) -> None:
    write_shard(path, example_block(2), stream="a")
    write_shard(path, example_block(2), stream="b")


def _shards_of_two_shapes(path: Path) -> None:
    write_shard(path, example_block(2), seq=0)
    write_shard(path, example_block(2, frame_shape=(2, 8)), seq=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_nothing, "No recording"),
        (_text, r"not a readable HDF5 file: it is of another kind\."),
        (_truncated, r"not a readable HDF5 file: it was cut off\."),
        (_other_names, r"energy \(float64 \(5,\)\), waveform \(float64 \(5, 40\)\)"),
        (_empty_file, "holds nothing"),
        (_no_frames, "no frames"),
        (_flat_counts, r"\(uint8 \(5, 64\)\)"),
        (_fewer_labels, "Y_a"),
        (_two_shapes, "X_b"),
        (_text_array, r"\|S3"),
        (_link_to_nothing, r"X_a \(a link to nothing\)"),
        (_scalar_counts, r"\(uint8 \(\)\), not numbers"),
        (_no_values, "not numbers"),
        (_group_of_labels, "Y_a is .group of nothing.*but /X_a"),
        (_text_labels, r"Y_a is \(\|S3"),
        (_scalar_offsets, "offsets"),
        (_endless_frames, "more than 1,048,576 bins"),
        (_text_shape, "no attribute frame_shape"),
        (_shot_linked_to_nothing, "has no image"),
        (_shot_without_energies, "has no image"),
        (_empty_folder, "holds no sealed shard"),
        (_two_streams, "2 streams: a, b"),
        (_shards_of_two_shapes, "2 frame shapes"),
    ],
)
def test_a_recording_of_an_unknown_form_says_what_was_found(tmp_path: Path, make, says: str) -> None:
    path = tmp_path / "recording.h5"
    make(path)
    with pytest.raises(DataError, match=says) as error:
        opened(path)
    assert str(path) in error.value.message
    with pytest.raises(DataError, match=says):
        read_labelled(path)


def _sound(path: Path, schema: str) -> None:
    counts, labels = np.ones((3, *SHAPE), np.int16), np.ones((3, *SHAPE), np.float16)
    if schema == "stacked":
        stacked(path, X_a=counts, Y_a=labels)
    elif schema == "hits":
        hit_lists(path, np.arange(4), SHAPE)
    else:
        stacked(path, **{f"{name}/Ximg": counts[0] for name in "ab"})
        with h5py.File(path, "r+") as file:
            file["c/Xhits"], file["c/Xaddresses"] = np.arange(4.0), np.arange(4)
            file["c/Xnedges"] = np.ones(4, np.int64)
            file["c"].attrs["nenergies"] = 16


@pytest.mark.parametrize("schema", ["stacked", "hits", "shots"])
def test_whatever_is_damaged_in_a_recording_it_is_read_or_refused_with_its_path(tmp_path: Path, schema: str) -> None:
    path, rng = tmp_path / "sound.h5", np.random.default_rng(11)
    _sound(path, schema)
    assert len(read_labelled(path)[0]) == 3
    whole, read, refused = path.read_bytes(), 0, 0
    for number in range(150):
        broken = bytearray(whole)
        for place in rng.integers(8, len(broken), rng.integers(1, 6)):
            broken[place] = rng.integers(256)
        # HDF5 knows a file by its name: another name each time.
        damaged = tmp_path / f"{number}.h5"
        damaged.write_bytes(bytes(broken))
        try:
            read_labelled(damaged)
        except DataError as exc:
            refused += str(damaged) in exc.message
        else:
            read += 1
    assert read + refused == 150
    assert 5 < refused < 145


def test_an_unknown_schema_lists_the_known_ones(tmp_path: Path) -> None:
    _other_names(tmp_path / "x.h5")
    with pytest.raises(DataError) as error:
        opened(tmp_path / "x.h5")
    assert all(known in error.value.hint for known in ("CookieNetAE", "Ximg/Ypdf", "CookieSimSlim"))


def test_a_shot_without_its_image_is_flagged_and_named_and_the_others_come(tmp_path: Path, caplog) -> None:
    with h5py.File(tmp_path / "shots.h5", "w") as file:
        file["a/Ximg"] = np.zeros(SHAPE, np.uint16)
        file.create_group("b")
        file["c/Ximg"] = np.zeros((2, 2), np.uint16)
        file["d/Ximg"] = np.ones(SHAPE, np.uint16)
    with caplog.at_level(logging.WARNING, "filmloop"):
        (block,) = collect(opened(tmp_path / "shots.h5"), 4)
    assert block.flags_N.tolist() == [0, BAD, BAD, 0]
    assert block.counts_NCE[:, 0, 0].tolist() == [0, 0, 0, 1]
    assert "shot b" in caplog.text


def test_a_damaged_shard_is_refused_with_its_name(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, example_block(20))
    (shard.group_path / "counts/c/0/0/0").write_bytes(b"")
    with pytest.raises(DataError, match=shard.shard_id):
        collect(opened(tmp_path), 5)


def test_reading_before_opening_and_after_closing_is_an_error(tmp_path: Path) -> None:
    source = build_source(ReplaySource(path=str(tmp_path / "absent.h5")), SHAPE)
    with pytest.raises(DataError, match="not open"):
        source.read(1)
    source.close()


def test_read_labelled_stops_at_its_limit_across_arrays_and_shards(tmp_path: Path) -> None:
    block = example_block(30)
    path = stacked(tmp_path / "x.h5", X_a=block.counts_NCE[:10], X_b=block.counts_NCE[10:])
    for limit in (1, 10, 11, 30, 31):
        counts_NCE, _, pulse_id_N = read_labelled(path, limit)
        np.testing.assert_array_equal(counts_NCE, block.counts_NCE[:limit])
        assert len(pulse_id_N) == min(limit, 30)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("cookiesimslim_16ch_stacked.h5", "replay-cookiesimslim-16ch-stacked"),
        ("Run 7 (März).h5", "replay-run-7-m-rz"),
        ("+.h5", "replay-recording"),
    ],
)
def test_the_stream_is_named_after_the_file_and_its_content(tmp_path: Path, name: str, stream: str) -> None:
    path = tmp_path / name
    assert default_stream(str(path)) == stream, "without a file, its name has to do"
    path.write_bytes(b"frames")
    named = default_stream(str(path))
    # SHA-256 of "6:framesframes": the size, the first MiB and the last.
    assert named == f"{stream}-acab5c"
    assert (
        build_source(ReplaySource(path=str(path)), SHAPE).stream == stream_name(ReplaySource(path=str(path))) == named
    )
    assert build_source(ReplaySource(path=str(path), stream="mine"), SHAPE).stream == "mine"


def test_recordings_of_one_name_are_streams_of_their_own_and_so_is_one_that_was_replaced(tmp_path: Path) -> None:
    mib = 1 << 20
    path = tmp_path / "a" / "run.h5"
    path.parent.mkdir()
    contents = [b"\0" * 3 * mib, b"\0" * (3 * mib + 1), b"\1" + b"\0" * (3 * mib - 1), b"\0" * (3 * mib - 1) + b"\1"]
    streams = []
    for content in contents:
        path.write_bytes(content)
        streams.append(default_stream(str(path)))
    assert len(set(streams)) == len(contents)
    copy = tmp_path / "b" / "run.h5"
    copy.parent.mkdir()
    copy.write_bytes(contents[-1])
    assert default_stream(str(copy)) == streams[-1], "the same frames elsewhere are the same stream"


def test_a_folder_of_shards_is_named_after_its_manifests(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    assert default_stream(str(folder)) == "replay-stage"
    write_shard(folder, example_block(3), seq=0)
    first = default_stream(str(folder))
    assert first == default_stream(str(folder))
    write_shard(folder, example_block(3), seq=1)
    assert len({"replay-stage", first, default_stream(str(folder))}) == 3


# Frames, shape, largest count and mean hits of a frame over the first 200, as h5py alone reads them.
@pytest.mark.parametrize(
    ("name", "frames", "shape", "top"),
    [
        ("cookienetae_128ch_a.h5", 200, (128, 128), 48),
        ("cookiesimslim_16ch_native.h5", 400, (16, 128), 14),
        ("cookiesimslim_16ch_stacked.h5", 6000, (16, 128), 19),
    ],
)
def test_the_public_sample_files_replay_whole(
    sample_data: Path, name: str, frames: int, shape: tuple[int, int], top: int
) -> None:
    path = sample_data / name
    source = build_source(ReplaySource(path=str(path), use_labels=True), shape)
    source.open(after=None)
    blocks = collect(source, 10_000, max_frames=1024)
    source.close()
    assert keys_of(blocks) == [(1, row) for row in range(frames)]
    counts_NCE, label_NCE, _ = read_labelled(path, 200)
    np.testing.assert_array_equal(counts_of(blocks)[:200], counts_NCE)
    assert label_NCE is not None
    assert counts_NCE.shape == label_NCE.shape == (200, *shape)
    assert counts_NCE.max() <= top <= counts_of(blocks).max()
