"""Shards under fire: killed writers, full disks, damaged bytes."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from filmloop.config.schema import StagingSection
from filmloop.core.documents import Accounting, ShardManifest
from filmloop.core.errors import DataError, TransientError, VerificationError
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard, damaged, last_sealed, sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.staging.recovery import recover
from filmloop.staging.retention import expire
from filmloop.staging.schema import Layout
from filmloop.staging.verify import verify_shard
from filmloop.staging.writer import ShardWriter
from filmloop.testing.shards import example_block, reseal, write_shard
from rigs.refusing import bound_by_modes, unreadable

SEAL_FOR_EVER = """
import os, signal, sys
from pathlib import Path
from filmloop.staging.layout import next_seq
from filmloop.staging.recovery import recover
from filmloop.testing.shards import example_block, write_shard

stage, crash_at, crash_after = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "after"
rename = os.replace
def replace(source, target):
    hit = crash_at and str(target).endswith(crash_at)
    if hit and not crash_after:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if hit:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace

recover(stage, "test")
block = example_block(200, frame_shape=(16, 128), labelled=True)
for seq in range(next_seq(stage, "test"), 10**6):
    print(write_shard(stage, block, seq=seq).shard_id, flush=True)
"""


@contextmanager
def writer_process(stage: Path, crash_at: str = "", when: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SEAL_FOR_EVER, str(stage), crash_at, when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def leftovers(stage: Path) -> set[str]:
    """Everything beside sealed shards."""
    return {path.name for path in stage.glob("*/run*/*") if not path.name.endswith((".zarr", ".manifest.json"))}


def test_a_writer_killed_at_any_time_loses_no_sealed_shard(tmp_path: Path) -> None:
    rng = random.Random(5)
    acknowledged: list[str] = []
    # A seal takes some 30 ms: kills spread over 0.12 s hit every step of it sooner or later.
    for _ in range(6):
        with writer_process(tmp_path) as process:
            assert process.stdout is not None
            acknowledged.append(process.stdout.readline().strip())
            time.sleep(rng.uniform(0, 0.12))
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
            acknowledged += rest.split()
        recover(tmp_path, "test")
        assert leftovers(tmp_path) == set()
        assert damaged(tmp_path) == []
        sealed = sealed_shards(tmp_path)
        for shard in sealed:
            verify_shard(shard.manifest_path)
        assert {shard.shard_id for shard in sealed} >= set(acknowledged)
    assert len(set(acknowledged)) == len(acknowledged) >= 6


@pytest.mark.parametrize(
    ("crash_at", "when", "sealed"),
    [
        ("00000000.zarr", "before", False),
        ("00000000.zarr", "after", True),
        ("00000000.manifest.json", "before", True),
        ("00000000.manifest.json", "after", True),
    ],
)
def test_a_crash_around_the_two_renames_leaves_a_whole_shard_or_none(
    tmp_path: Path, crash_at: str, when: str, sealed: bool
) -> None:
    with writer_process(tmp_path, crash_at, when) as process:
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert leftovers(tmp_path) or when == "after"
    recover(tmp_path, "test")
    assert leftovers(tmp_path) == set()
    assert (last_sealed(tmp_path, "test") is not None) == sealed
    assert len(list(tmp_path.glob("test/*/*.zarr"))) == sealed
    if sealed:
        verify_shard(tmp_path / "test/run000001/00000000.manifest.json")


@pytest.mark.parametrize("manifest_part", ["absent", "torn", "of another group"])
def test_a_group_whose_commit_cannot_be_finished_is_put_aside(tmp_path: Path, manifest_part: str) -> None:
    keep = write_shard(tmp_path, example_block(5), seq=0)
    orphan = write_shard(tmp_path, example_block(5, seed=2), seq=1)
    part = orphan.manifest_path.with_name(orphan.manifest_path.name + ".part")
    orphan.manifest_path.rename(part)
    if manifest_part == "absent":
        part.unlink()
    elif manifest_part == "torn":
        part.write_text(part.read_text()[:100])
    else:
        (orphan.group_path / "counts/c/0/0/0").write_bytes(b"other counts")

    done = recover(tmp_path, "test")
    aside = tmp_path / ".quarantine/test-run000001-00000001.zarr.orphan"
    assert done.quarantined == (aside,)
    assert (aside / "zarr.json").is_file()
    assert (done.finished, leftovers(tmp_path)) == ((), set())
    assert [shard.shard_id for shard in sealed_shards(tmp_path)] == [keep.shard_id]
    # A second orphan of the same number finds its own place.
    again = write_shard(tmp_path, example_block(5), seq=1)
    again.manifest_path.unlink()
    assert recover(tmp_path, "test").quarantined == (aside.with_name("test-run000001-00000001.zarr.1.orphan"),)


def test_a_commit_is_finished_once_the_disk_lets_its_group_be_read(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, example_block(5))
    shard.manifest_path.rename(shard.manifest_path.with_name(shard.manifest_path.name + ".part"))
    with bound_by_modes(), unreadable(shard.group_path / "counts"), pytest.raises(TransientError):
        recover(tmp_path, "test")
    assert recover(tmp_path, "test").finished == (shard.manifest_path,)
    assert [each.shard_id for each in sealed_shards(tmp_path)] == [shard.shard_id]


def files_of(*frames: str) -> list[str]:
    """Every file of a labelled shard whose counts are in the arrays `frames`."""
    arrays = [*frames, "label", "pulse_id", "flags", "version", "phase", "weight"]
    data = [f"{name}/c/0/0/0" if name in ("counts", "label") else f"{name}/c/0" for name in arrays]
    return ["zarr.json", *(f"{name}/zarr.json" for name in arrays), *data]


DENSE_FILES = files_of("counts")
EVENT_FILES = files_of("hits", "offsets")
EVERY_FILE = [("dense", name) for name in DENSE_FILES] + [("events", name) for name in EVENT_FILES]


def seal_example(stage: Path, layout: Layout) -> SealedShard:
    """40 labelled frames in chunks of 16: a shard with inner indices and padded last chunks."""
    return write_shard(stage, example_block(40, first_pulse_id=500, labelled=True), version=2, layout=layout)


@pytest.fixture
def shard(tmp_path: Path) -> SealedShard:
    return seal_example(tmp_path, "dense")


def read_all(reader: ShardReader) -> None:
    reader.block(0, reader.frames)
    _ = reader.version_N, reader.phase_N, reader.weight_N


@pytest.mark.parametrize(("layout", "names"), [("dense", DENSE_FILES), ("events", EVENT_FILES)])
def test_the_list_of_files_is_complete(tmp_path: Path, layout: Layout, names: list[str]) -> None:
    shard = seal_example(tmp_path, layout)
    assert {file.path.partition("/")[2] for file in shard.manifest.files} == set(names)


@pytest.mark.parametrize(("layout", "name"), EVERY_FILE)
def test_a_flipped_bit_in_any_file_is_found_on_reading_and_on_verifying(
    tmp_path: Path, layout: Layout, name: str
) -> None:
    shard = seal_example(tmp_path, layout)
    path = shard.group_path / name
    whole = path.read_bytes()
    for offset in np.linspace(0, len(whole) - 1, 12).astype(int):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << (offset % 8)
        path.write_bytes(flipped)
        with pytest.raises(DataError) as found:
            verify_shard(shard.manifest_path)
        assert name in found.value.message
        with pytest.raises(DataError) as found:
            read_all(ShardReader(shard.manifest_path))
        assert name in found.value.message
        assert shard.shard_id in found.value.message
        assert "filmloop shards verify" in found.value.hint
        if not name.endswith("zarr.json"):
            with pytest.raises(DataError):
                read_all(ShardReader(shard.manifest_path, check="none"))
    path.write_bytes(whole)
    verify_shard(shard.manifest_path)


@pytest.mark.parametrize(("layout", "name"), EVERY_FILE)
@pytest.mark.parametrize("left", [None, 0, 0.5, -1])
def test_a_missing_or_truncated_file_is_found(tmp_path: Path, layout: Layout, name: str, left: float | None) -> None:
    shard = seal_example(tmp_path, layout)
    path = shard.group_path / name
    whole = path.read_bytes()
    if left is None:
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if left == -1 else whole[: int(left * len(whole))])
    for check in (verify_shard, ShardReader):
        with pytest.raises(DataError) as found:
            check(shard.manifest_path)
        assert name in found.value.message


@pytest.mark.parametrize(
    ("layout", "name"), [("dense", "counts/c/0/0/0"), ("events", "hits/c/0"), ("events", "offsets/c/0")]
)
@pytest.mark.parametrize("content", [None, b""])
def test_frames_that_vanish_while_a_reader_is_open_never_become_zeros(
    tmp_path: Path, layout: Layout, name: str, content: bytes | None
) -> None:
    shard = seal_example(tmp_path, layout)
    reader = ShardReader(shard.manifest_path)
    path = shard.group_path / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        reader.counts(0, 10)


@pytest.mark.parametrize(
    ("array", "values", "says"),
    [
        ("offsets", [0, 2, 1, 3], "falls"),
        ("offsets", [1, 1, 2, 3], "falls"),
        ("offsets", [0, 1, 2, 2], "does not end"),
        ("hits", [64, 1, 1], "bin 64"),
    ],
)
def test_an_event_list_that_contradicts_itself_is_found_whatever_its_hashes_say(
    tmp_path: Path, array: str, values: list[int], says: str
) -> None:
    # Three frames of 4 x 16 with one hit each, rewritten by another hand: honest CRCs, no promise of ours kept.
    counts_NCE = np.zeros((3, 4, 16), np.uint8)
    counts_NCE[:, 0, 1] = 1
    shard = write_shard(tmp_path, replace(example_block(3), counts_NCE=counts_NCE), layout="events")
    zarr.open_group(shard.group_path, mode="r+")[array][...] = np.array(values)
    with pytest.raises(DataError, match=says):
        read_all(ShardReader(shard.manifest_path, check="none"))


def test_a_frame_that_weighs_nothing_is_found_whatever_its_hashes_say(shard: SealedShard) -> None:
    zarr.open_group(shard.group_path, mode="r+")["weight"][3] = 0.0
    reseal(shard)
    with pytest.raises(DataError, match="weight"):
        verify_shard(shard.manifest_path)


def test_a_file_that_nobody_listed_is_found(shard: SealedShard) -> None:
    (shard.group_path / "counts/c/0/0/1").write_bytes(b"more")
    with pytest.raises(DataError, match="counts/c/0/0/1"):
        verify_shard(shard.manifest_path)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 39},
        {"frame_shape": [16, 4]},
        {"labelled": False},
        {"layout": "events"},
        {"first_pulse_id": 501},
        {"last_pulse_id": 600},
        {"model_versions": {"3": 40}},
        {"seq": 1},
        {"run_number": 2},
        {"stream": "other"},
        {"group": "../run000001/00000000.zarr"},
        {"schema_version": 2},
        {"files": []},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_edited_manifest_is_found(shard: SealedShard, change: dict[str, object]) -> None:
    values = json.loads(shard.manifest_path.read_text()) | change
    shard.manifest_path.write_text(json.dumps(values))
    with pytest.raises(DataError):
        verify_shard(shard.manifest_path)


def test_an_edit_that_fits_the_data_is_found_by_the_promised_digest(shard: SealedShard) -> None:
    digest = shard.manifest.digest()
    verify_shard(shard.manifest_path, digest=digest)
    ShardManifest.model_copy(shard.manifest, update={"site": "elsewhere"}).write(shard.manifest_path)
    verify_shard(shard.manifest_path)
    with pytest.raises(VerificationError, match="not the promised one"):
        verify_shard(shard.manifest_path, digest=digest)


def test_a_shard_of_another_shape_with_honest_hashes_is_found(shard: SealedShard, tmp_path: Path) -> None:
    other = write_shard(tmp_path / "other", example_block(40, first_pulse_id=500, frame_shape=(2, 32), labelled=True))
    shutil.rmtree(shard.group_path)
    shutil.copytree(other.group_path, shard.group_path)
    ShardManifest.model_copy(shard.manifest, update={"files": other.manifest.files}).write(shard.manifest_path)
    with pytest.raises(DataError, match=r"\(40, 2, 32\)"):
        verify_shard(shard.manifest_path)


def random_writer(stage: Path, seq: int) -> ShardWriter:
    """64 frames of 16 x 128 random bytes: 128 KiB that no codec makes smaller."""
    rng = np.random.default_rng(seq)
    writer = ShardWriter(
        stage,
        site="testsite",
        stream="test",
        run_number=1,
        seq=seq,
        frame_shape=(16, 128),
        labelled=False,
        section=StagingSection(frames_per_shard=64, frames_per_chunk=16),
    )
    block = FrameBlock(
        run_number=1,
        pulse_id_N=np.arange(64, dtype=np.uint64) + np.uint64(64 * seq),
        counts_NCE=rng.integers(0, 255, (64, 16, 128), np.uint8, endpoint=True),
        flags_N=np.zeros(64, np.uint8),
    )
    writer.append(block, version_N=np.zeros(64, np.uint32), phase_N=np.zeros(64, np.float32))
    return writer


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("1m")


def test_a_full_disk_loses_nothing_and_the_seal_works_once_there_is_room(small_disk: Path) -> None:
    # 1 MiB holds at most 7 shards of more than 128 KiB.
    writers = [random_writer(small_disk, seq) for seq in range(8)]
    sealed, full = 0, None
    while full is None:
        writer = writers[sealed]
        try:
            writer.seal(accounting=Accounting())
            sealed += 1
        except TransientError as exc:
            full = exc
    assert "No space left" in full.message
    assert "FILMLOOP_HOME" in full.hint
    assert full.retryable
    assert leftovers(small_disk) == set()
    assert len(sealed_shards(small_disk)) == sealed >= 4
    with pytest.raises(TransientError):
        writer.seal(accounting=Accounting())

    expire(small_disk, "test", sealed - 2, lambda shard_id: True)
    writer.seal(accounting=Accounting())
    assert len(sealed_shards(small_disk)) == sealed - 1
    for shard in sealed_shards(small_disk):
        verify_shard(shard.manifest_path)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The group's zarr.json has 0.2 KB, the counts' 1.2 KB, the manifest 3 KB, the counts 131 KB.
@pytest.mark.parametrize("size_bytes", [100, 1000, 100_000])
def test_a_write_that_fails_at_any_file_leaves_no_trace_and_can_be_repeated(tmp_path: Path, size_bytes: int) -> None:
    before = write_shard(tmp_path, example_block(5), seq=0)
    writer = random_writer(tmp_path, 1)
    with largest_file(size_bytes), pytest.raises(TransientError):
        writer.seal(accounting=Accounting())
    assert leftovers(tmp_path) == set()
    assert [shard.shard_id for shard in sealed_shards(tmp_path)] == [before.shard_id]
    verify_shard(writer.seal(accounting=Accounting()).manifest_path)


def test_a_manifest_that_cannot_be_written_leaves_no_group_behind(tmp_path: Path) -> None:
    # Five small frames: every file of the group fits into 2000 bytes, the manifest does not.
    with largest_file(2000), pytest.raises(TransientError, match="00000000"):
        write_shard(tmp_path, example_block(5))
    assert list(tmp_path.glob("test/*/*")) == []


def test_a_stage_that_is_a_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "stage").write_text("not a folder")
    with pytest.raises((DataError, TransientError)) as error:
        write_shard(tmp_path / "stage", example_block(5))
    assert str(tmp_path / "stage") in error.value.message


READERS: list[Callable[[Path], object]] = [verify_shard, ShardReader]


@pytest.mark.parametrize("check", READERS, ids=["verify", "reader"])
def test_an_absent_manifest_is_a_data_error(tmp_path: Path, check: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="nowhere"):
        check(tmp_path / "nowhere.manifest.json")
