"""What a loaded model must show before it serves, on the very path that serves, and again once it does.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from filmloop.core.errors import VerificationError
from filmloop.edge.runtimes.pending import BACKLOG_FRAMES, brightened
from filmloop.ports.runtime import KEYS_ONLY, InferenceRuntime, Wanted
from filmloop_models.spec import SortKey

_LEAST_PHASE_RAD = 0.01
_SIZES = (1, 17, 65)
"""Lengths that take each of a runtime's graphs once, beside the full batch."""
_DRAWS, _OFF = 4, 0.05
_BREATH_S = 0.02
"""Between two lengths: each may compile a graph for 40 ms, and frames that waited meanwhile get through."""


def check_finite(
    runtime: InferenceRuntime, frame_shape: tuple[int, int], batch_frames: int, wanted: Wanted = KEYS_ONLY
) -> None:
    """See that `runtime` makes numbers of the extremes, frames without a count and frames full to the brim.

    Full batches too: the first of its size costs milliseconds more than the following, and here nobody waits for it.

    Raises:
        VerificationError: a rate is not finite.
    """
    for count, kind in ((0, "an empty"), (255, "a saturated")):
        counts_NCE = np.full((min(batch_frames, runtime.batch_frames), *frame_shape), count, np.uint8)
        served_NCE = runtime.start(counts_NCE, dense=wanted.dense, surprise=wanted.surprise).result().rate_NCE
        rate_NCE = runtime.infer(counts_NCE) if served_NCE is None else served_NCE
        if not np.isfinite(rate_NCE).all():
            raise VerificationError(
                f"Version {runtime.version} makes rates that are not finite of {kind} frame.",
                hint="Train again, or go back: `filmloop models rollback`.",
                ids={"version": runtime.version},
            )


def check_golden(
    runtime: InferenceRuntime,
    counts_NCE: npt.NDArray[np.uint8],
    golden_NCE: npt.NDArray[np.float32],
    *,
    tolerance: float,
    sort_key: SortKey | None = None,
    wanted: Wanted = KEYS_ONLY,
) -> float:
    """Compare what `runtime` makes of the golden counts with what training made, on every way in and for every size.

    Returns:
        The relative RMS difference, the largest of all ways.

    Raises:
        VerificationError: it is above `tolerance` or not a number, the output has another shape, or the keys differ.
    """
    ways = [
        _relative(runtime, runtime.infer(counts), golden_NCE) for counts in (counts_NCE, counts_NCE.astype(np.float32))
    ]
    worst = _within(runtime, max(ways, key=_badness), tolerance)
    # One frame alone is to have a clear key: of several the median is taken.
    clearest = _clearest_first(golden_NCE, sort_key)
    batch_frames = runtime.batch_frames
    in_parts = min(runtime.most_frames, max(batch_frames, BACKLOG_FRAMES) + 1)  # a full batch is among them
    for frames in sorted({min(size, batch_frames) for size in _SIZES} | {in_parts}):
        rows = clearest[np.arange(frames) % len(counts_NCE)]
        worst = max(
            worst,
            check_served(
                runtime, counts_NCE[rows], golden_NCE[rows], tolerance=tolerance, sort_key=sort_key, wanted=wanted
            ),
        )
        time.sleep(_BREATH_S)
    return worst


def check_served(
    runtime: InferenceRuntime,
    counts_NCE: npt.NDArray[np.uint8],
    golden_NCE: npt.NDArray[np.float32],
    *,
    tolerance: float,
    sort_key: SortKey | None = None,
    wanted: Wanted = KEYS_ONLY,
) -> float:
    """Compare rates and keys with the golden pair, on the way that serves; rates that are not served by `infer`.

    The keys of golden and served rates differ by an angle whose median over the frames may be `phase_tolerance`: that of
    single frames without a clear phase may be anything.

    Returns:
        The relative RMS difference of the rates.

    Raises:
        VerificationError: it is above `tolerance` or not a number, the output has another shape, or the keys differ.
    """
    relative = 0.0
    for start in range(0, len(counts_NCE), runtime.most_frames):
        part_NCE = counts_NCE[start : start + runtime.most_frames]
        golden_part_NCE = golden_NCE[start : start + runtime.most_frames]
        served = runtime.start(part_NCE, dense=wanted.dense, surprise=wanted.surprise).result()
        if sort_key is not None:
            _check_keys(runtime, served.phase_N, sort_key(golden_part_NCE), phase_tolerance(tolerance))
        rate_NCE = runtime.infer(part_NCE) if served.rate_NCE is None else served.rate_NCE
        relative = max(relative, _within(runtime, _relative(runtime, rate_NCE, golden_part_NCE), tolerance))
    return relative


def check_bright(
    runtime: InferenceRuntime, exact: InferenceRuntime, counts_NCE: npt.NDArray[np.uint8], *, tolerance: float
) -> float:
    """Compare with `exact` on counts that are two and four times as high: the golden pair knows one beam only.

    Integers have ranges that were set by frames like the golden ones. A runtime that fails here is right today and
    silently wrong when the gain has drifted.

    Returns:
        The relative RMS difference, the larger one.

    Raises:
        VerificationError: it is above `tolerance`.
    """
    worst = 0.0
    for factor in (2, 4):
        bright_NCE = brightened(counts_NCE, factor)
        relative = _relative(runtime, runtime.infer(bright_NCE), exact.infer(bright_NCE))
        if not relative <= tolerance:
            raise VerificationError(
                f"{runtime.name} differs from {exact.name} by {relative:.2e} on counts {factor} times as high "
                f"(relative RMS; at most {tolerance:.2e}).",
                ids={"version": runtime.version},
            )
        worst = max(worst, relative)
    return worst


def phase_tolerance(tolerance: float) -> float:
    """Largest median difference of keys, rad, for rates that may differ by `tolerance`: bfloat16 shows 0.006."""
    return max(_LEAST_PHASE_RAD, tolerance)


def _clearest_first(golden_NCE: npt.NDArray[np.float32], sort_key: SortKey | None) -> npt.NDArray[np.intp]:
    """Numbers of the frames, by how little their keys change when every rate is off by some percent of its own."""
    if sort_key is None:
        return np.arange(len(golden_NCE))
    rng, key_N, moved_N = np.random.default_rng(0), sort_key(golden_NCE), np.zeros(len(golden_NCE))
    for _ in range(_DRAWS):
        off_NCE = golden_NCE * rng.normal(1.0, _OFF, golden_NCE.shape).astype(np.float32)
        moved_N += np.abs(np.angle(np.exp(1j * (sort_key(off_NCE) - key_N).astype(np.float64))))
    return np.argsort(moved_N, kind="stable")  # what is not a number comes last


def _check_keys(
    runtime: InferenceRuntime, served_N: npt.NDArray[np.float32], golden_N: npt.NDArray[np.float32], tolerance: float
) -> None:
    apart_N = np.abs(np.angle(np.exp(1j * (served_N.astype(np.float64) - golden_N))))
    apart_N = apart_N[np.isfinite(golden_N)]
    # `not <=` is also true for a key that is not a number where the golden one is.
    if len(apart_N) and not np.median(apart_N) <= tolerance:
        raise VerificationError(
            f"Version {runtime.version} served by {runtime.name} gives keys {np.median(apart_N):.2e} rad from those of "
            f"its golden pair (median; at most {tolerance:.2e}).",
            hint="What is served is not what was loaded: restart the edge; `filmloop models show VERSION`.",
            ids={"version": runtime.version},
        )


def _relative(
    runtime: InferenceRuntime, rate_NCE: npt.NDArray[np.float32], golden_NCE: npt.NDArray[np.float32]
) -> float:
    """Relative RMS difference."""
    if rate_NCE.shape != golden_NCE.shape:
        raise VerificationError(
            f"Version {runtime.version} makes rates of shape {rate_NCE.shape}, its golden pair has {golden_NCE.shape}.",
            ids={"version": runtime.version},
        )
    scale = float(np.sqrt(np.mean(np.square(golden_NCE, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(rate_NCE.astype(np.float64) - golden_NCE)))) / max(scale, 1e-12)


def _within(runtime: InferenceRuntime, relative: float, tolerance: float) -> float:
    if not relative <= tolerance:
        raise VerificationError(
            f"Version {runtime.version} served by {runtime.name} differs from its golden pair by {relative:.2e} "
            f"(relative RMS; at most {tolerance:.2e}).",
            hint="Its weights or its network code are not those that training used; "
            "`filmloop models show VERSION` tells the code commit.",
            ids={"version": runtime.version},
        )
    return relative


def _badness(relative: float) -> float:
    """Orders differences; one that is not a number is the worst."""
    return np.inf if np.isnan(relative) else relative
