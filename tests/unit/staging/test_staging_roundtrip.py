"""What goes into a shard comes out of it: by our reader, by plain Zarr, by xarray, by tensorstore."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, PulseRange, ShardManifest
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard
from filmloop.staging.events import pack_events
from filmloop.staging.reader import ShardReader
from filmloop.staging.schema import Layout
from filmloop.staging.verify import verify_shard
from filmloop.staging.writer import ShardWriter
from filmloop.testing.shards import example_block, reseal, write_shard


def make_writer(
    stage: Path,
    *,
    frames: int = 100,
    chunk: int = 16,
    labelled: bool = False,
    seq: int = 0,
    layout: Layout = "dense",
) -> ShardWriter:
    return ShardWriter(
        stage,
        site="testsite",
        stream="test",
        run_number=1,
        seq=seq,
        frame_shape=(4, 16),
        labelled=labelled,
        section=StagingSection(frames_per_shard=frames, frames_per_chunk=chunk, layout=layout),
    )


def append(writer: ShardWriter, block: FrameBlock, *, version: int = 0) -> int:
    return writer.append(
        block, version_N=np.full(len(block), version, np.uint32), phase_N=np.full(len(block), np.nan, np.float32)
    )


LAYOUTS: list[Layout] = ["dense", "events"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_frames_in_blocks_of_any_size_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # Frames, blocks, chunks and shapes around each other's edges; extreme values of every type.
    frames, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 9)))
    labelled, layout = data.draw(st.booleans()), data.draw(st.sampled_from(LAYOUTS))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    top = data.draw(st.sampled_from([0, 1, 255]))
    block = FrameBlock(
        run_number=1,
        pulse_id_N=rng.integers(0, 2**63, frames, dtype=np.uint64),
        counts_NCE=rng.integers(0, top, (frames, *shape), dtype=np.uint8, endpoint=True),
        flags_N=rng.integers(0, 255, frames, dtype=np.uint8, endpoint=True),
        label_NCE=rng.normal(0, 100, (frames, *shape)).astype(np.float16).astype(np.float32) if labelled else None,
    )
    version_N = rng.integers(0, 2**32 - 1, frames, dtype=np.uint32, endpoint=True)
    phase_N = np.where(rng.random(frames) < 0.3, np.nan, rng.normal(size=frames)).astype(np.float32)
    weight_N = rng.choice([1, 7], frames).astype(np.float32)
    # Hits that a source brings are a part of a longer list: their offsets do not begin at 0.
    hits, offsets_N1 = pack_events(block.counts_NCE)
    hits, offsets_N1 = np.concatenate([np.ones(3, np.uint16), hits]), offsets_N1 + np.uint64(3)
    writer = ShardWriter(
        tmp_path_factory.mktemp("stage"),
        site="testsite",
        stream="test",
        run_number=1,
        seq=0,
        frame_shape=shape,
        labelled=labelled,
        section=StagingSection(frames_per_shard=frames, frames_per_chunk=chunk, layout=layout),
    )
    done = 0
    while done < frames:
        stop = done + data.draw(st.integers(1, frames))
        part = slice(done, stop)
        native = data.draw(st.booleans())
        done += writer.append(
            block[part],
            version_N=version_N[part],
            phase_N=phase_N[part],
            weight_N=weight_N[part],
            events=(hits, offsets_N1[done : stop + 1]) if native else None,
        )
    shard = writer.seal(accounting=Accounting(frames_in=frames))

    verify_shard(shard.manifest_path)
    reader = ShardReader(shard.manifest_path)
    assert reader.manifest.layout == layout
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start, frames + 3))
    np.testing.assert_array_equal(reader.counts(start, stop), block.counts_NCE[start:stop])
    np.testing.assert_array_equal(reader.counts(-2), block.counts_NCE[-2:])
    np.testing.assert_array_equal(reader.pulse_id_N, block.pulse_id_N)
    np.testing.assert_array_equal(reader.flags_N, block.flags_N)
    np.testing.assert_array_equal(reader.version_N, version_N)
    np.testing.assert_array_equal(reader.phase_N, phase_N)
    np.testing.assert_array_equal(reader.weight_N, weight_N)
    if labelled:
        np.testing.assert_array_equal(reader.labels(start, stop), block.label_NCE[start:stop])


def test_many_chunks_of_hits_come_back_as_they_were_written(tmp_path: Path) -> None:
    # 300 frames of 2048 counts: 614,400 hits, two chunks and a part of a third; the frames do not end where chunks do.
    counts_NCE = np.random.default_rng(3).poisson(1.0, (300, 16, 128)).astype(np.uint8)
    block = FrameBlock(
        run_number=1,
        pulse_id_N=np.arange(300, dtype=np.uint64),
        counts_NCE=counts_NCE,
        flags_N=np.zeros(300, np.uint8),
    )
    shard = write_shard(tmp_path, block, layout="events")
    hits = zarr.open_group(shard.group_path, mode="r")["hits"]
    assert hits.chunks == (262144,)
    assert hits.shape[0] == counts_NCE.sum() > 2 * 262144
    verify_shard(shard.manifest_path)
    np.testing.assert_array_equal(ShardReader(shard.manifest_path).counts(), counts_NCE)


def test_the_manifest_tells_what_is_in_the_shard(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, seq=12)
    append(writer, example_block(30, first_pulse_id=1000), version=3)
    append(writer, example_block(10, first_pulse_id=1035), version=4)
    lost = PulseRange(first_pulse_id=1030, last_pulse_id=1034, frames=5, reason="overflow")
    accounting = Accounting(frames_in=45, frames_inferred=45, frames_staged=40, frames_unstaged={"overflow": 5})
    shard = writer.seal(accounting=accounting, dropped=[lost])

    assert shard.shard_id == "test/run000001/00000012"
    assert shard.manifest_path == tmp_path / "test/run000001/00000012.manifest.json"
    assert shard.group_path == tmp_path / "test/run000001/00000012.zarr"
    manifest = ShardReader(shard.manifest_path).manifest
    assert manifest == shard.manifest
    assert (manifest.frames, manifest.first_pulse_id, manifest.last_pulse_id) == (40, 1000, 1044)
    assert manifest.model_versions == {"3": 30, "4": 10}
    assert manifest.accounting == accounting
    assert manifest.dropped == (lost,)
    assert manifest.size_bytes == sum(path.stat().st_size for path in shard.group_path.rglob("*") if path.is_file())
    # Paths count from the manifest's folder: the mover joins them to it.
    assert all((shard.manifest_path.parent / file.path).is_file() for file in manifest.files)


def test_a_full_shard_takes_what_fits_and_says_so(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, frames=50)
    assert (writer.frames, writer.full, writer.age_s) == (0, False, 0.0)
    block = example_block(60)
    assert append(writer, block[:40]) == 40
    assert append(writer, block[40:]) == 10
    assert writer.full
    assert writer.age_s > 0
    assert append(writer, block[50:]) == 0
    shard = writer.seal(accounting=Accounting())
    np.testing.assert_array_equal(ShardReader(shard.manifest_path).counts(), block.counts_NCE[:50])


def test_the_writer_copies_so_the_source_may_reuse_its_block(tmp_path: Path) -> None:
    writer, block = make_writer(tmp_path), example_block(10)
    before = block.counts_NCE.copy()
    append(writer, block)
    block.counts_NCE[:] = 99
    np.testing.assert_array_equal(ShardReader(writer.seal(accounting=Accounting()).manifest_path).counts(), before)


def test_nothing_is_on_disk_before_the_seal_nor_after_an_abort(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    append(writer, example_block(10))
    assert list(tmp_path.iterdir()) == []
    writer.abort()
    assert (writer.frames, list(tmp_path.iterdir())) == (0, [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_shard_with_few_frames_takes_little_memory(tmp_path: Path, layout: Layout) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # Ten million frames of 4 x 16 with labels would be 2 GB, what they have beside counts and labels 210 MB.
    block, before = example_block(100, labelled=True), resident_bytes()
    writer = make_writer(tmp_path, frames=10**7, chunk=1024, labelled=True, layout=layout)
    for _ in range(20):
        append(writer, block)
    assert resident_bytes() - before < 10e6


def test_a_sealed_shard_is_never_written_again(tmp_path: Path) -> None:
    late = make_writer(tmp_path)
    append(late, example_block(10))
    first = write_shard(tmp_path, example_block(20))
    with pytest.raises(DataError, match="sealed already"):
        late.seal(accounting=Accounting())
    with pytest.raises(DataError, match="sealed already"):
        write_shard(tmp_path, example_block(30))
    verify_shard(first.manifest_path)
    assert ShardReader(first.manifest_path).frames == 20


def test_an_empty_shard_cannot_be_sealed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frame"):
        make_writer(tmp_path).seal(accounting=Accounting())


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (example_block(5, run_number=2), "run 2"),
        (example_block(5, frame_shape=(16, 4)), "(16, 4)"),
        (replace(example_block(5), counts_NCE=np.zeros((5, 4, 16), np.int16)), "int16"),
    ],
)
def test_frames_that_do_not_belong_are_refused_whole(tmp_path: Path, block: FrameBlock, says: str) -> None:
    writer = make_writer(tmp_path)
    with pytest.raises(DataError) as error:
        append(writer, block)
    assert says in error.value.message
    assert writer.frames == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000.0])
def test_labels_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    writer, block = make_writer(tmp_path, labelled=True), example_block(5, labelled=True)
    block.label_NCE[3, 2, 1] = value
    with pytest.raises(DataError, match="float16"):
        append(writer, block)


def test_a_labelled_shard_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        append(make_writer(tmp_path, labelled=True), example_block(5))


def test_asking_an_unlabelled_shard_for_labels_names_the_setting(tmp_path: Path) -> None:
    reader = ShardReader(write_shard(tmp_path, example_block(5)).manifest_path)
    with pytest.raises(DataError) as error:
        reader.labels()
    assert "use_labels" in error.value.hint


@pytest.mark.parametrize("stream", ["", "../evil", "a/b", ".quarantine", "a b"])
def test_a_stream_that_is_no_folder_name_is_a_config_error(tmp_path: Path, stream: str) -> None:
    with pytest.raises(ConfigError, match="stream"):
        ShardWriter(
            tmp_path,
            site="testsite",
            stream=stream,
            run_number=1,
            seq=0,
            frame_shape=(4, 16),
            labelled=False,
            section=StagingSection(),
        )


def test_a_frame_with_too_many_bins_for_a_hit_is_a_config_error(tmp_path: Path) -> None:
    def open_shard(frame_shape: tuple[int, int], layout: Layout) -> ShardWriter:
        return ShardWriter(
            tmp_path,
            site="testsite",
            stream="test",
            run_number=1,
            seq=0,
            frame_shape=frame_shape,
            labelled=False,
            section=StagingSection(layout=layout, frames_per_shard=1),
        )

    open_shard((128, 512), "events")
    open_shard((128, 513), "dense")
    with pytest.raises(ConfigError, match="65664 bins") as error:
        open_shard((128, 513), "events")
    assert 'layout = "dense"' in error.value.hint


@pytest.mark.parametrize(
    "events",
    [
        (np.zeros(4, np.uint16), np.array([0, 1, 2], np.uint64)),
        (np.zeros(4, np.uint16), np.array([0, 1, 2, 5], np.uint64)),
        (np.zeros(4, np.uint16), np.array([0, 2, 1, 4], np.uint64)),
        (np.array([0, 0, 63, 1], np.uint16), np.array([0, 1, 2, 4], np.uint64)),
        (np.zeros(4, np.int32), np.array([0, 1, 2, 4], np.uint64)),
    ],
    ids=["an offset short", "beyond the hits", "falling", "outside the frame", "of another type"],
)
def test_hits_that_are_no_event_list_are_refused_whole(tmp_path: Path, events: tuple[np.ndarray, np.ndarray]) -> None:
    writer, block = make_writer(tmp_path, layout="events"), example_block(3)
    with pytest.raises(DataError):
        writer.append(block, version_N=np.zeros(3, np.uint32), phase_N=np.zeros(3, np.float32), events=events)
    assert writer.frames == 0
    append(writer, block)
    shard = writer.seal(accounting=Accounting())
    np.testing.assert_array_equal(ShardReader(shard.manifest_path).counts(), block.counts_NCE)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_a_weight_that_is_not_positive_is_refused(tmp_path: Path, weight: float) -> None:
    with pytest.raises(DataError, match="weight"):
        write_shard(tmp_path, example_block(3), weight_N=np.array([1, weight, 1], np.float32))


def test_frames_weigh_one_unless_told_otherwise(tmp_path: Path) -> None:
    reader = ShardReader(write_shard(tmp_path, example_block(3)).manifest_path)
    assert reader.weight_N.tolist() == [1, 1, 1]


def test_dense_counts_cannot_be_asked_for_hits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not hits"):
        ShardReader(write_shard(tmp_path, example_block(3)).manifest_path).events()


@pytest.mark.parametrize("lengths", [(1, 20, 20), (20, 3, 20), (20, 20, 1)])
def test_columns_of_another_length_are_refused_whole(tmp_path: Path, lengths: tuple[int, int, int]) -> None:
    writer, block = make_writer(tmp_path), example_block(20)
    version_N, phase_N, weight_N = (np.ones(length, np.float32) for length in lengths)
    with pytest.raises(DataError, match="each"):
        writer.append(block, version_N=version_N.astype(np.uint32), phase_N=phase_N, weight_N=weight_N)
    assert writer.frames == 0
    append(writer, block)
    shard = writer.seal(accounting=Accounting())
    np.testing.assert_array_equal(ShardReader(shard.manifest_path).counts(), block.counts_NCE)


def test_a_sealed_writer_and_an_aborted_one_take_no_more(tmp_path: Path) -> None:
    sealed, aborted = make_writer(tmp_path), make_writer(tmp_path, seq=1)
    append(sealed, example_block(3))
    sealed.seal(accounting=Accounting())
    append(aborted, example_block(3))
    aborted.abort()
    for writer, frames in ((sealed, 3), (aborted, 0)):
        assert append(writer, example_block(3)) == 0
        assert (writer.full, writer.frames) == (True, frames)


def test_a_shard_of_version_1_is_read_with_weights_of_one(tmp_path: Path) -> None:
    block = example_block(5)
    shard = write_shard(tmp_path, block)
    shutil.rmtree(shard.group_path / "weight")
    set_attributes(shard, filmloop_schema_version=1)
    verify_shard(shard.manifest_path)
    reader = ShardReader(shard.manifest_path)
    np.testing.assert_array_equal(reader.counts(), block.counts_NCE)
    assert reader.weight_N.tolist() == [1] * 5


def test_a_shard_of_a_newer_version_is_refused_with_its_number(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, example_block(5))
    set_attributes(shard, filmloop_schema_version=3)
    with pytest.raises(DataError, match="schema version 3"):
        ShardReader(shard.manifest_path)


def set_attributes(shard: SealedShard, **attributes: int) -> None:
    metadata = json.loads((shard.group_path / "zarr.json").read_text())
    (shard.group_path / "zarr.json").write_text(json.dumps(metadata | {"attributes": attributes}))
    reseal(shard)


EXPECTED_CODECS = ["BloscCodec", "Crc32cCodec"]


def test_zarr_and_xarray_read_dense_counts(tmp_path: Path) -> None:
    block = example_block(40, labelled=True)
    shard = write_shard(tmp_path, block)

    group = zarr.open_group(shard.group_path, mode="r")
    assert (group.attrs["filmloop_schema_version"], group.attrs["shard_id"]) == (2, shard.shard_id)
    array = group["counts"]
    np.testing.assert_array_equal(array[...], block.counts_NCE)
    # One file for all counts; 40 frames in chunks of 16 fill three of them.
    assert (array.chunks, array.shards) == ((16, 4, 16), (48, 4, 16))
    assert [type(codec).__name__ for codec in array.compressors] == EXPECTED_CODECS

    with xarray.open_zarr(shard.group_path, consolidated=False) as table:
        assert dict(table.sizes) == {"frame": 40, "channel": 4, "energy": 16}
        assert set(table) == {"counts", "pulse_id", "flags", "version", "phase", "weight", "label"}
        np.testing.assert_array_equal(table["counts"].values, block.counts_NCE)
        np.testing.assert_array_equal(table["pulse_id"].values, block.pulse_id_N)
        np.testing.assert_array_equal(table["label"].values, block.label_NCE)
        assert table["counts"].dtype == np.uint8


@pytest.mark.parametrize("frames", [40, 1])
def test_zarr_and_xarray_read_an_event_list(tmp_path: Path, frames: int) -> None:
    block = example_block(frames)
    hits, offsets_N1 = pack_events(block.counts_NCE)
    shard = write_shard(tmp_path, block, layout="events")

    group = zarr.open_group(shard.group_path, mode="r")
    np.testing.assert_array_equal(group["hits"][...], hits)
    np.testing.assert_array_equal(group["offsets"][...], offsets_N1)
    assert [type(codec).__name__ for codec in group["hits"].compressors] == EXPECTED_CODECS
    assert "counts" not in group

    with xarray.open_zarr(shard.group_path, consolidated=False) as table:
        assert dict(table.sizes) == {"frame": frames, "hit": len(hits), "offset": frames + 1}
        np.testing.assert_array_equal(table["hits"].values, hits)
        np.testing.assert_array_equal(table["pulse_id"].values, block.pulse_id_N)


def test_every_reader_takes_a_list_without_a_hit(tmp_path: Path) -> None:
    block = replace(example_block(5), counts_NCE=np.zeros((5, 4, 16), np.uint8))
    shard = write_shard(tmp_path, block, layout="events")
    verify_shard(shard.manifest_path)
    np.testing.assert_array_equal(ShardReader(shard.manifest_path).counts(), block.counts_NCE)
    assert zarr.open_group(shard.group_path, mode="r")["hits"][...].tolist() == []
    with xarray.open_zarr(shard.group_path, consolidated=False) as table:
        assert table.sizes["hit"] == 0
    assert by_tensorstore(shard, "hits").tolist() == []


def test_tensorstore_reads_every_array(tmp_path: Path) -> None:
    block = example_block(40, labelled=True)
    for seq, layout in enumerate(LAYOUTS):
        shard = write_shard(tmp_path, block, seq=seq, layout=layout)
        group = zarr.open_group(shard.group_path, mode="r")
        for name in group:
            np.testing.assert_array_equal(by_tensorstore(shard, name), group[name][...])
    np.testing.assert_array_equal(by_tensorstore(shard, "hits"), pack_events(block.counts_NCE)[0])


def by_tensorstore(shard: SealedShard, name: str) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{shard.group_path}/{name}/"}}
    return tensorstore.open(spec, read=True).result().read().result()


def test_the_manifest_says_which_gains_were_corrected_and_says_nothing_where_none_were(tmp_path: Path) -> None:
    """Manifests of shards without a correction keep their digests: the key is not there."""
    plain = write_shard(tmp_path, example_block(4))
    assert "input_gain" not in plain.manifest_path.read_text(encoding="utf-8")
    assert "frames_dark" not in plain.manifest_path.read_text(encoding="utf-8")
    told = plain.manifest.model_copy(update={"input_gain": (0.5, 0.0)})
    told.write(tmp_path / "m.json")
    assert ShardManifest.read(tmp_path / "m.json").input_gain == (0.5, 0.0)
    assert told.digest() != plain.manifest.digest()
