from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from filmloop.core.documents import FileDigest, ModelChoice, ShardManifest, TrainHyper, TrainJob
from filmloop.core.errors import DataError

SHA = "0" * 64


def job(**changes: object) -> TrainJob:
    fields = {
        "job_id": "j1",
        "model": ModelChoice(name="mixer", frame_shape=(16, 128)),
        "fresh": (),
        "output_dir": "/r",
    }
    return TrainJob.model_validate({**fields, **changes})


def test_a_document_reads_back_equal(tmp_path: Path) -> None:
    written = job(hyper=TrainHyper(max_steps=7))
    written.write(tmp_path / "job.json")
    again = TrainJob.read(tmp_path / "job.json")
    assert again == written
    assert again.digest() == written.digest()


def test_every_field_is_in_the_digest() -> None:
    assert len({job().digest(), job(seed=1).digest(), job(hyper=TrainHyper(max_steps=7)).digest()}) == 3


def test_documents_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sede": 1}, "TrainJob: sede is no key that it may have"),
        ({"schema_version": 2}, "schema_version must be 1, not 2"),
        ({"deadline_s": float("inf")}, "deadline_s must be a finite number, not inf"),
        ({"deadline_s": 0}, "deadline_s must be above 0, not 0"),
        ({"seed": "one"}, "seed must be a whole number, not 'one'"),
        ({"hyper": {"keep_low": 0.9, "keep_high": 0.8}}, r"hyper: keep_low \(0.9\) must be less than keep_high"),
    ],
)
def test_a_file_that_does_not_fit_is_a_data_error_that_names_the_field(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**job().as_json(), **changes}))
    with pytest.raises(DataError, match=says) as caught:
        TrainJob.read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_no_object_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("[1]")
    with pytest.raises(DataError, match="TrainJob"):
        TrainJob.read(tmp_path / "f")
    with pytest.raises(DataError):
        TrainJob.read(tmp_path / "absent")


def test_a_file_digest_is_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"")
    digest = FileDigest.of(tmp_path / "a" / "f", tmp_path)
    # SHA-256 of nothing.
    assert digest == FileDigest(
        path="a/f", size_bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_a_manifest_knows_its_bytes() -> None:
    manifest = ShardManifest(
        shard_id="s", site="local", stream="simulator", run_number=1, seq=0, group="0.zarr", frames=2,
        frame_shape=(16, 128), first_pulse_id=1, last_pulse_id=2, opened_utc="", sealed_utc="",
        files=(FileDigest(path="a", size_bytes=3, sha256=SHA), FileDigest(path="b", size_bytes=4, sha256=SHA)),
    )  # fmt: skip
    assert manifest.size_bytes == 7


def test_numbers_that_are_none_are_never_written() -> None:
    with pytest.raises(ValidationError):
        TrainHyper(learning_rate=float("nan"))


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.6), (0.96, 0.95)])
def test_the_range_of_kept_shares_is_not_empty(low: float, high: float) -> None:
    with pytest.raises(ValidationError, match=rf"keep_low \({low}\) must be less than keep_high \({high}\)"):
        TrainHyper(keep_low=low, keep_high=high)
    assert TrainHyper(keep_low=high - 0.1, keep_high=high).keep_high == high
