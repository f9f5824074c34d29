"""What goes into a shard comes out of it: by our reader, by plain Zarr, by xarray, by tensorstore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, PulseRange
from filmloop.core.errors import ConfigError, DataError
from filmloop.core.types import FrameBlock
from filmloop.staging.reader import ShardReader
from filmloop.staging.verify import verify_shard
from filmloop.staging.writer import ShardWriter
from filmloop.testing.shards import example_block, write_shard


def make_writer(
    stage: Path, *, frames: int = 100, chunk: int = 16, labelled: bool = False, seq: int = 0
) -> ShardWriter:
    return ShardWriter(
        stage,
        site="testsite",
        stream="test",
        run_number=1,
        seq=seq,
        frame_shape=(4, 16),
        labelled=labelled,
        section=StagingSection(frames_per_shard=frames, frames_per_chunk=chunk),
    )


def append(writer: ShardWriter, block: FrameBlock, *, version: int = 0) -> int:
    return writer.append(
        block, version_N=np.full(len(block), version, np.uint32), phase_N=np.full(len(block), np.nan, np.float32)
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shard_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    # Frames, chunks and shapes around each other's edges; extreme values of every type.
    frames, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 9)))
    labelled = data.draw(st.booleans())
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
    writer = ShardWriter(
        tmp_path_factory.mktemp("stage"),
        site="testsite",
        stream="test",
        run_number=1,
        seq=0,
        frame_shape=shape,
        labelled=labelled,
        section=StagingSection(frames_per_shard=frames, frames_per_chunk=chunk),
    )
    assert writer.append(block, version_N=version_N, phase_N=phase_N) == frames
    shard = writer.seal(accounting=Accounting(frames_in=frames))

    verify_shard(shard.manifest_path)
    reader = ShardReader(shard.manifest_path)
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start, frames + 3))
    np.testing.assert_array_equal(reader.counts(start, stop), block.counts_NCE[start:stop])
    np.testing.assert_array_equal(reader.pulse_id_N, block.pulse_id_N)
    np.testing.assert_array_equal(reader.flags_N, block.flags_N)
    np.testing.assert_array_equal(reader.version_N, version_N)
    np.testing.assert_array_equal(reader.phase_N, phase_N)
    if labelled:
        np.testing.assert_array_equal(reader.labels(start, stop), block.label_NCE[start:stop])


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


def test_a_sealed_shard_is_never_written_again(tmp_path: Path) -> None:
    late = make_writer(tmp_path)
    append(late, example_block(10))
    first = write_shard(tmp_path, example_block(20))
    with pytest.raises(DataError, match="sealed already"):
        late.seal(accounting=Accounting())
    with pytest.raises(DataError, match="sealed already"):
        make_writer(tmp_path)
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


def test_zarr_and_xarray_read_a_shard(tmp_path: Path) -> None:
    block = example_block(40, labelled=True)
    shard = write_shard(tmp_path, block)

    array = zarr.open_group(shard.group_path, mode="r")["counts"]
    np.testing.assert_array_equal(array[...], block.counts_NCE)
    # One file for all counts; 40 frames in chunks of 16 fill three of them.
    assert (array.chunks, array.shards) == ((16, 4, 16), (48, 4, 16))
    assert [type(codec).__name__ for codec in array.compressors] == ["BloscCodec", "Crc32cCodec"]

    with xarray.open_zarr(shard.group_path, consolidated=False) as table:
        assert dict(table.sizes) == {"frame": 40, "channel": 4, "energy": 16}
        np.testing.assert_array_equal(table["counts"].values, block.counts_NCE)
        np.testing.assert_array_equal(table["pulse_id"].values, block.pulse_id_N)
        np.testing.assert_array_equal(table["label"].values, block.label_NCE)


def test_tensorstore_reads_a_shard(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    block = example_block(40)
    shard = write_shard(tmp_path, block)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{shard.group_path}/counts/"}}
    np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), block.counts_NCE)
