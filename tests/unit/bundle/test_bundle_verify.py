"""Nothing unverified is loaded: whatever is wrong with a bundle, `verify_bundle` finds it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from filmloop import bundle as names
from filmloop.bundle import file_digests, load_evaluation, load_golden, load_weights, verify_bundle
from filmloop.core.documents import FileDigest, TrainResult
from filmloop.core.errors import DataError, VerificationError
from filmloop.testing.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def reseal(folder: Path, **changes: object) -> None:
    """Rewrite the result so that its digests fit the files again: only their content is wrong then."""
    files = file_digests(folder)
    weights = next((file.sha256 for file in files if file.path == names.WEIGHTS), "0" * 64)
    result = TrainResult.read(folder / names.RESULT)
    result.model_copy(update={"files": files, "weights_sha256": weights, **changes}).write(folder / names.RESULT)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def save_weights(folder: Path, **arrays: np.ndarray) -> None:
    save_file(arrays, folder / names.WEIGHTS)


def save_golden(folder: Path, **arrays: np.ndarray) -> None:
    save_file(arrays, folder / names.GOLDEN)


def test_a_whole_bundle_passes_and_loads(bundle: Path) -> None:
    result = verify_bundle(bundle)
    assert result == TrainResult.read(bundle / names.RESULT)
    assert verify_bundle(bundle, digest=result.bundle_digest()) == result
    assert load_weights(bundle)["head.weight"].shape == (8, 8)
    counts_NCE, rate_NCE = load_golden(bundle)
    assert counts_NCE.shape == rate_NCE.shape == (3, 4, 8)
    assert {"challenger", "gaussian"} <= set(load_evaluation(bundle).reports)


@pytest.mark.parametrize("name", [*names.REQUIRED, "plots/loss.png"])
def test_a_flipped_bit_in_any_file_is_found(bundle: Path, name: str) -> None:
    flip_a_bit(bundle / name)
    with pytest.raises(VerificationError, match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", [*names.REQUIRED, "plots/loss.png"])
def test_a_missing_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(VerificationError, match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", names.REQUIRED)
def test_a_bundle_without_a_required_file_is_none_even_if_it_lists_none(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    reseal(bundle)
    with pytest.raises(VerificationError, match=f"lacks {name}"):
        verify_bundle(bundle)


def test_a_truncated_file_is_found(bundle: Path) -> None:
    path = bundle / names.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerificationError, match="size or SHA-256"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["weights.pt", "plots/.hidden"])
def test_a_file_too_many_is_found(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"who put me here?")
    with pytest.raises(VerificationError, match="does not list"):
        verify_bundle(bundle)


def test_another_bundle_than_the_promised_one_is_found(bundle: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "other", seed=1)
    promised = verify_bundle(bundle).bundle_digest()
    with pytest.raises(VerificationError, match="not the registered one"):
        verify_bundle(tmp_path / "other", digest=promised)


def test_a_changed_number_in_the_result_changes_the_digest(bundle: Path) -> None:
    promised = verify_bundle(bundle).bundle_digest()
    reseal(bundle, metrics={"nll": -1.0})
    verify_bundle(bundle)
    with pytest.raises(VerificationError, match="not the registered one"):
        verify_bundle(bundle, digest=promised)


def damaged_result(folder: Path) -> None:
    (folder / names.RESULT).write_text("{")


def no_result(folder: Path) -> None:
    (folder / names.RESULT).unlink()


def other_weights(folder: Path) -> None:
    result = TrainResult.read(folder / names.RESULT)
    result.model_copy(update={"weights_sha256": "0" * 64}).write(folder / names.RESULT)


def nan_weights(folder: Path) -> None:
    save_weights(folder, w=np.array([1.0, np.nan], np.float32))
    reseal(folder)


def infinite_weights(folder: Path) -> None:
    save_weights(folder, w=np.array([1.0, np.inf], np.float16))
    reseal(folder)


def pickled_weights(folder: Path) -> None:
    (folder / names.WEIGHTS).write_bytes(pickle.dumps({"w": np.zeros(2)}))
    reseal(folder)


def empty_weights(folder: Path) -> None:
    (folder / names.WEIGHTS).write_bytes(b"")
    reseal(folder)


def golden_without_rates(folder: Path) -> None:
    save_golden(folder, counts_NCE=np.zeros((3, 4, 8), np.uint8))
    reseal(folder)


def golden_of_two_shapes(folder: Path) -> None:
    save_golden(folder, counts_NCE=np.zeros((3, 4, 8), np.uint8), rate_NCE=np.zeros((3, 4, 9), np.float32))
    reseal(folder)


def golden_of_another_type(folder: Path) -> None:
    save_golden(folder, counts_NCE=np.zeros((3, 4, 8), np.int64), rate_NCE=np.zeros((3, 4, 8), np.float32))
    reseal(folder)


def golden_not_finite(folder: Path) -> None:
    save_golden(folder, counts_NCE=np.zeros((3, 4, 8), np.uint8), rate_NCE=np.full((3, 4, 8), np.nan, np.float32))
    reseal(folder)


def file_outside(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"not ours")
    result = TrainResult.read(folder / names.RESULT)
    outside = FileDigest(path="../secret", size_bytes=8, sha256=FileDigest.of(secret, folder.parent).sha256)
    result.model_copy(update={"files": (*result.files, outside)}).write(folder / names.RESULT)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (no_result, "without a valid result.json"),
        (damaged_result, "without a valid result.json"),
        (other_weights, "other weights"),
        (nan_weights, "w has values that are not finite"),
        (infinite_weights, "w has values that are not finite"),
        (pickled_weights, "not a safetensors file"),
        (empty_weights, "not a safetensors file"),
        (golden_without_rates, "no golden pair"),
        (golden_of_two_shapes, "no golden pair"),
        (golden_of_another_type, "no golden pair"),
        (golden_not_finite, "rate_NCE has values that are not finite"),
        (file_outside, "lost its file ../secret"),
    ],
)
def test_harm_is_found_and_said(bundle: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(bundle)
    with pytest.raises(VerificationError, match=says) as caught:
        verify_bundle(bundle)
    assert caught.value.exit_code == 5


def test_pickled_weights_are_never_unpickled(bundle: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
            return open, (str(tmp_path / "exploded"), "w")

    (bundle / names.WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    reseal(bundle)
    with pytest.raises(VerificationError, match="pickled"):
        verify_bundle(bundle)
    with pytest.raises(VerificationError):
        load_weights(bundle)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("loaded", [False, True], ids=["", "ml_dtypes"])
@pytest.mark.parametrize(("kind", "size_bytes"), [("BF16", 2), ("F8_E4M3", 1)])
def test_numbers_that_numpy_does_not_have_are_told_as_such(
    bundle: Path, kind: str, size_bytes: int, loaded: bool
) -> None:
    if loaded:
        pytest.importorskip("ml_dtypes")  # brings NumPy these kinds
    header = json.dumps({"a": {"dtype": kind, "shape": [1], "data_offsets": [0, size_bytes]}}).encode()
    (bundle / names.WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(size_bytes))
    reseal(bundle)
    with pytest.raises(VerificationError, match="numbers of a kind that NumPy does not have") as caught:
        verify_bundle(bundle)
    assert "float32" in caught.value.hint


def test_an_absent_evaluation_is_a_data_error(bundle: Path) -> None:
    (bundle / names.EVALUATION).unlink()
    with pytest.raises(DataError):
        load_evaluation(bundle)


def test_an_absent_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        verify_bundle(tmp_path / "absent")
