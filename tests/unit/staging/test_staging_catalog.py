"""Listing, retention and what they make of damaged shards."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from filmloop.core.documents import Accounting
from filmloop.core.errors import ConfigError, TransientError
from filmloop.staging.catalog import damaged, last_sealed, sealed_shards
from filmloop.staging.layout import ShardName, next_seq
from filmloop.staging.reader import ShardReader
from filmloop.staging.recovery import Recovery, recover
from filmloop.staging.retention import expire
from filmloop.staging.verify import verify_shard
from filmloop.testing.shards import example_block, write_shard
from rigs.refusing import bound_by_modes, unreadable


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Two streams; `b` has two runs, and nine and ten to tell sorting by number from sorting by text."""
    write_shard(tmp_path, example_block(3), stream="b", seq=9)
    write_shard(tmp_path, example_block(3, first_pulse_id=3), stream="b", seq=10)
    write_shard(tmp_path, example_block(3, run_number=2), stream="b", seq=11, accounting=Accounting(frames_in=9))
    write_shard(tmp_path, example_block(3), stream="a", seq=0)
    return tmp_path


def ids(stage: Path, stream: str | None = None) -> list[str]:
    return [shard.shard_id for shard in sealed_shards(stage, stream)]


ALL_B = ["b/run000001/00000009", "b/run000001/00000010", "b/run000002/00000011"]


def test_shards_are_listed_in_order_of_stream_and_number(stage: Path) -> None:
    assert ids(stage) == ["a/run000001/00000000", *ALL_B]
    assert ids(stage, "b") == ALL_B
    assert ids(stage, "no-such-stream") == ids(stage / "absent") == []


def test_the_last_sealed_shard_carries_the_accounting_on(stage: Path) -> None:
    last = last_sealed(stage, "b")
    assert last is not None
    assert last.manifest.accounting.frames_in == 9
    assert last_sealed(stage, "no-such-stream") is None


def test_a_ref_leads_to_the_shard_and_names_its_manifest(stage: Path) -> None:
    ref = sealed_shards(stage, "a")[0].ref()
    reader = ShardReader(Path(ref.manifest_path))
    assert (ref.shard_id, ref.frames) == ("a/run000001/00000000", 3)
    assert ref.manifest_digest == reader.manifest_digest


def _cut_manifest(manifest: Path) -> None:
    manifest.write_text(manifest.read_text()[:-20])


def _empty_manifest(manifest: Path) -> None:
    manifest.write_bytes(b"")


def _other_number(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seq": 7}))


def _no_group(manifest: Path) -> None:
    shutil.rmtree(manifest.with_name("00000011.zarr"))


def _group_elsewhere(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"group": "../run000001/00000009.zarr"}))


@pytest.mark.parametrize("harm", [_cut_manifest, _empty_manifest, _other_number, _no_group, _group_elsewhere])
def test_a_damaged_shard_is_left_out_named_and_warned_of_once(stage: Path, harm, caplog) -> None:
    manifest = ShardName(stream="b", run_number=2, seq=11).manifest_path(stage)
    harm(manifest)
    with caplog.at_level(logging.WARNING, logger="filmloop"):
        assert ids(stage, "b") == ALL_B[:2]
        assert ids(stage, "b") == ALL_B[:2]
    assert len(caplog.records) == 1
    assert damaged(stage) == [manifest]
    last = last_sealed(stage, "b")
    assert last is not None
    assert last.shard_id == ALL_B[1]
    # Its number is not used again: the next shard must not collide with the remains.
    assert next_seq(stage, "b") == 12


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(stage: Path) -> None:
    for folder in (stage / "b/run000001", stage / "b", stage):
        with bound_by_modes(), unreadable(folder):
            for look in (sealed_shards, last_sealed, next_seq, recover):
                with pytest.raises(TransientError, match="Permission denied"):
                    look(stage, "b")
    assert ids(stage, "b") == ALL_B


def test_numbers_start_at_zero(tmp_path: Path) -> None:
    assert next_seq(tmp_path, "new") == 0


def test_a_number_that_does_not_fit_the_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="out of range"):
        ShardName(stream="a", run_number=1_000_000, seq=0)


def test_the_oldest_shards_go_beyond_those_kept(stage: Path) -> None:
    assert expire(stage, "b", 2, lambda shard_id: True) == ALL_B[:1]
    assert ids(stage) == ["a/run000001/00000000", *ALL_B[1:]]
    left = {path.name for path in (stage / "b/run000001").iterdir()}
    assert left == {"00000010.zarr", "00000010.manifest.json"}


def test_a_shard_that_is_still_needed_stays(stage: Path) -> None:
    assert expire(stage, "b", 1, lambda shard_id: shard_id != ALL_B[0]) == [ALL_B[1]]
    assert ids(stage, "b") == [ALL_B[0], ALL_B[2]]


@pytest.mark.parametrize("keep", [0, -1, 1])
def test_the_newest_shard_never_goes(stage: Path, keep: int) -> None:
    expire(stage, "b", keep, lambda shard_id: True)
    assert ids(stage, "b") == ALL_B[2:]


def test_nothing_goes_while_there_are_few(stage: Path) -> None:
    assert expire(stage, "b", 3, lambda shard_id: True) == []
    assert ids(stage, "b") == ALL_B


def test_a_removal_that_a_crash_cut_off_is_finished(stage: Path) -> None:
    name = ShardName(stream="b", run_number=1, seq=9)
    manifest = name.manifest_path(stage)
    manifest.rename(manifest.with_name(manifest.name + ".expired"))
    assert ids(stage, "b") == ALL_B[1:]
    assert recover(stage, "b") == Recovery(expired=(name.shard_id,))
    assert {path.name for path in manifest.parent.iterdir()} == {"00000010.zarr", "00000010.manifest.json"}
    assert recover(stage, "b") == Recovery()


def test_recovery_leaves_sealed_shards_and_other_streams_alone(stage: Path) -> None:
    other = stage / "a/run000001/00000001.zarr.part"
    other.mkdir()
    assert recover(stage, "b") == Recovery()
    assert recover(stage, "no-such-stream") == Recovery()
    assert other.is_dir()
    for shard in sealed_shards(stage):
        verify_shard(shard.manifest_path)


def test_the_number_alone_says_what_is_newest_even_if_a_site_goes_back_to_an_earlier_run(stage: Path) -> None:
    newest = write_shard(stage, example_block(3, run_number=0), stream="b", seq=12, accounting=Accounting(frames_in=12))
    assert ids(stage, "b") == [*ALL_B, newest.shard_id]
    last = last_sealed(stage, "b")
    assert last is not None
    assert last.shard_id == newest.shard_id
    assert next_seq(stage, "b") == 13
    assert expire(stage, "b", 1, lambda shard_id: True) == ALL_B
    assert ids(stage, "b") == [newest.shard_id]
    recover(stage, "b")
    assert ids(stage, "b") == [newest.shard_id]
