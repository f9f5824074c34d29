"""The result bundle: what training hands over, and the checks it must pass before anything loads it.

    weights.safetensors   the network's parameters; never pickled
    model.onnx            the same network for other runtimes
    golden.safetensors    counts_NCE (uint8) and rate_NCE (float32): what these weights make of these frames
    evaluation.json       reports of challenger, champion and baselines on the held-out frames
    metrics.jsonl         one line per logged step
    job.json              the job as it was given
    plots/*.png           for people
    result.json           written last; its digest covers every other file

Torch-free: the cycle, the registry and the edge all look at bundles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from filmloop.core.documents import Document, EvaluationReport, FileDigest, TrainResult
from filmloop.core.errors import DataError, VerificationError

WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
GOLDEN = "golden.safetensors"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
JOB = "job.json"
RESULT = "result.json"
REQUIRED = (WEIGHTS, GOLDEN, EVALUATION, METRICS, JOB)

Arrays = dict[str, npt.NDArray[np.generic]]


class Evaluation(Document):
    """The reports of one bundle, by predictor: challenger, champion (if there was one), gaussian, zero."""

    reports: dict[str, EvaluationReport]


def file_digests(folder: Path) -> tuple[FileDigest, ...]:
    """Digests of every file below `folder` but `result.json`, sorted by path."""
    return tuple(
        FileDigest.of(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != RESULT
    )


def verify_bundle(folder: Path, *, digest: str | None = None) -> TrainResult:
    """Check the whole bundle and return its result document.

    Every listed file must be there with its size and hash, no other file may be, the required ones must be listed,
    and weights and golden pair must be finite numbers in safetensors form. `digest` is what the caller was promised.

    Raises:
        VerificationError: anything differs; nothing of the bundle may be loaded.
    """
    ids = {"path": str(folder)}
    try:
        result = TrainResult.read(folder / RESULT)
    except DataError as exc:
        raise VerificationError(f"Bundle without a valid {RESULT}: {exc.message}", hint=exc.hint, ids=ids) from exc
    if digest is not None and result.bundle_digest() != digest:
        raise VerificationError(
            f"Bundle {folder} is not the registered one: digest {result.bundle_digest()[:12]}, expected {digest[:12]}.",
            hint="Someone replaced it. `filmloop models show VERSION` tells where it came from.",
            ids=ids,
        )
    listed = {file.path: file for file in result.files}
    if missing := sorted(set(REQUIRED) - set(listed)):
        raise VerificationError(f"Bundle {folder} lacks {', '.join(missing)}.", ids=ids)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RESULT}
    if extra := sorted(found - set(listed)):
        raise VerificationError(
            f"Bundle {folder} has files that its result does not list: {', '.join(extra)}.", ids=ids
        )
    for name, file in listed.items():
        if name not in found:
            raise VerificationError(f"Bundle {folder} lost its file {name}.", ids=ids)
        if FileDigest.of(folder / name, folder) != file:
            raise VerificationError(
                f"{folder / name} is not what training wrote: its size or SHA-256 differs.",
                hint="Fetch it again; if it stays so, roll back with `filmloop models rollback`.",
                ids=ids,
            )
    if listed[WEIGHTS].sha256 != result.weights_sha256:
        raise VerificationError(f"{RESULT} names other weights than the bundle holds.", ids=ids)
    load_weights(folder)
    load_golden(folder)
    return result


def load_weights(folder: Path) -> Arrays:
    """The parameters by name, as NumPy arrays.

    Raises:
        VerificationError: not a safetensors file (pickled weights are never loaded), or not finite.
    """
    return _load_finite(folder / WEIGHTS)


def load_golden(folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The golden pair: counts (N, C, E) uint8 and the rates (N, C, E) float32 that the weights made of them.

    Raises:
        VerificationError: not such a pair.
    """
    arrays = _load_finite(folder / GOLDEN)
    counts_NCE, rate_NCE = arrays.get("counts_NCE"), arrays.get("rate_NCE")
    if (
        counts_NCE is None
        or rate_NCE is None
        or counts_NCE.dtype != np.uint8
        or rate_NCE.dtype != np.float32
        or counts_NCE.shape != rate_NCE.shape
        or counts_NCE.ndim != 3
    ):
        raise VerificationError(f"{folder / GOLDEN} holds no golden pair.", ids={"path": str(folder)})
    return counts_NCE.astype(np.uint8, copy=False), rate_NCE.astype(np.float32, copy=False)


def load_evaluation(folder: Path) -> Evaluation:
    """The evaluation reports.

    Raises:
        DataError: absent or not valid.
    """
    return Evaluation.read(folder / EVALUATION)


def _load_finite(path: Path) -> Arrays:
    ids = {"path": str(path)}
    try:
        arrays: Arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, ValidationError) as exc:
        raise VerificationError(
            f"{path} is not a safetensors file: {exc}.",
            hint="filmloop never loads pickled weights; train again to get a bundle.",
            ids=ids,
        ) from exc
    except (TypeError, AttributeError) as exc:  # bfloat16, float8
        raise _strange(path, str(exc)) from exc
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":  # the same, in a process that has loaded ml_dtypes
            raise _strange(path, f"{name} is {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise VerificationError(f"{path}: {name} has values that are not finite.", ids=ids)
    return arrays


def _strange(path: Path, what: str) -> VerificationError:
    return VerificationError(
        f"{path} holds numbers of a kind that NumPy does not have: {what}.",
        hint="The network has to keep its parameters in float32 or float16.",
        ids={"path": str(path)},
    )
