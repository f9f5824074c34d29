"""`runtime = "auto"`: what this machine has is measured once, the fastest that is exact enough serves.

Two measurements of one runtime differ by a tenth, so of those within a tenth of the fastest the most exact one is taken:
eight bits compile twice as many graphs at every swap, and have to earn that.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from filmloop.bundle import load_golden
from filmloop.core.documents import Document
from filmloop.core.errors import ConfigError, DataError, VerificationError
from filmloop.edge.gentle import AT_ONCE, Pace
from filmloop.edge.runtimes.candidates import PROBE_FRAMES, Candidates
from filmloop.edge.runtimes.checks import check_bright
from filmloop.edge.runtimes.make import batch_of, is_emulated
from filmloop.edge.runtimes.measure import batch_s, frames_per_s
from filmloop.ports.runtime import InferenceRuntime
from filmloop_models import catalog

_log = logging.getLogger(__name__)

_MEASURE_S, _PROBES = 0.2, 10
_HOPE = 4.0
"""How much faster a candidate may become than a probe in a small batch says; one that stays behind even so is not measured."""
_AS_FAST = 0.9
"""Of the fastest one's rate: who reaches it counts as fast as that."""
_MOST_PROMISING_FIRST = ("cuda", "openvino-bf16", "openvino-f32", "openvino-int8", "onnxruntime", "torch")


class RuntimeChoice(Document):
    """Which runtime serves, and why."""

    name: str = Field(description="a value of edge.runtime other than auto")
    batch_frames: int = Field(
        ge=1, description="most frames of one batch: more would take over half the latency budget"
    )
    reason: str = Field(description="for people")
    frames_per_s: dict[str, float] = Field(description="keys only, by candidate that is exact enough")
    relative_rms: dict[str, float] = Field(description="from the golden pair, by candidate that is exact enough")
    dropped: dict[str, str] = Field(description="why the others are none")
    key: str = Field(description="digest of the machine, the packages, the model and the settings it holds for")


def choose(candidates: Candidates) -> tuple[InferenceRuntime, RuntimeChoice]:
    """Measure the runtimes that this machine has, some 0.2 s each, and take the fastest, or one as fast and more exact; proven.

    Raises:
        VerificationError: none of them makes of the golden counts what it should; the error is PyTorch's own.
    """
    measured: dict[str, _Measured] = {}
    fastest: _Measured | None = None
    dropped: dict[str, str] = {}
    refused: VerificationError | None = None
    for name in _MOST_PROMISING_FIRST:
        if name == "torch" and fastest is not None:
            # It takes seconds to load, and was the slowest wherever it was measured (benchmarks/results).
            dropped[name] = "not measured: it is for machines that have nothing else"
            continue
        try:
            found = measured[name] = _measured(candidates, name, fastest)
        except (ConfigError, _TooSlowError) as exc:
            _log.debug("%s is no candidate: %s", name, exc)
            dropped[name] = exc.message if isinstance(exc, ConfigError) else str(exc)
        except VerificationError as exc:
            _log.info("%s is no candidate: %s", name, exc.message)
            dropped[name], refused = exc.message, exc
        except Exception as exc:
            # A vendor's package may fail in ways that no list covers; what is left may do.
            _log.warning("%s is no candidate: %s: %s", name, type(exc).__name__, exc)
            dropped[name] = f"{type(exc).__name__}: {exc}"
        else:
            fastest = found if fastest is None or found.frames_per_s > fastest.frames_per_s else fastest
    if fastest is None:
        raise refused or VerificationError(f"No runtime here can run version {candidates.version}: {dropped}.")
    as_fast = [each for each in measured.values() if each.frames_per_s >= _AS_FAST * fastest.frames_per_s]
    best = min(as_fast, key=lambda each: each.relative_rms)
    for each in measured.values():
        if each is not best:
            each.runtime.close()
    what = "fastest" if best is fastest else f"as fast as {fastest.name} and the most exact"
    return best.runtime, RuntimeChoice(
        name=best.name,
        batch_frames=best.runtime.batch_frames,
        reason=f"{what} of {len(measured)} within their tolerance: {best.frames_per_s:,.0f} frames/s in batches of "
        f"{best.runtime.batch_frames}, golden pair met to {best.relative_rms:.1e}",
        frames_per_s={name: each.frames_per_s for name, each in measured.items()},
        relative_rms={name: each.relative_rms for name, each in measured.items()},
        dropped=dropped,
        key=candidates.key(),
    )


def runtime_for(
    candidates: Candidates,
    cache: Path,
    *,
    pace: Pace = AT_ONCE,
    warm_up: Callable[[InferenceRuntime], object] = lambda _: None,
) -> tuple[InferenceRuntime, RuntimeChoice]:
    """The proven runtime that `edge.runtime` asks for; for `auto` the choice is kept in `cache`.

    It is loaded gently, and called with `warm_up` in the same way; what is measured is measured plainly.

    Weights whose golden pair the kept choice does not meet get one of their own, which is not kept: those after them may
    do better, and a slower runtime must not stay for their sake.

    Raises:
        ConfigError: a named runtime is not to be had here.
        VerificationError: the weights are not fit to serve.
        TransientError: the disk refuses.
    """
    edge = candidates.edge
    if edge.runtime != "auto":
        batch_frames = batch_of(edge.runtime, edge.batch_frames)
        runtime, difference = pace.gently(partial(_loaded, candidates, edge.runtime, batch_frames, warm_up))
        return runtime, _named(candidates, difference)
    kept = _kept(cache, candidates.key())
    if kept is not None:
        try:
            return pace.gently(partial(_loaded, candidates, kept.name, kept.batch_frames, warm_up))[0], kept
        except (ConfigError, VerificationError) as exc:
            _log.warning(
                "%s does not serve version %s, another runtime is measured for it: %s",
                kept.name,
                candidates.version,
                exc.message,
            )
    runtime, choice = pace.plainly(partial(choose, candidates))
    _warm(runtime, warm_up)
    if kept is None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        choice.write(cache)
    _log.info("runtime %s: %s", choice.name, choice.reason)
    return runtime, choice


def _loaded(
    candidates: Candidates, name: str, batch_frames: int, warm_up: Callable[[InferenceRuntime], object]
) -> tuple[InferenceRuntime, float]:
    runtime, difference = candidates.proven(name, batch_frames)
    return _warm(runtime, warm_up), difference


def _warm(runtime: InferenceRuntime, warm_up: Callable[[InferenceRuntime], object]) -> InferenceRuntime:
    try:
        warm_up(runtime)
    except BaseException:
        runtime.close()
        raise
    return runtime


class _TooSlowError(Exception):
    """It cannot be the fastest: a small batch shows that, or the machine lacks its units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A candidate that is exact enough, ready to serve; in batches of `runtime.batch_frames`."""

    name: str
    runtime: InferenceRuntime
    frames_per_s: float
    relative_rms: float


def _measured(candidates: Candidates, name: str, best: _Measured | None) -> _Measured:
    """Its rate in the largest batches within the budget.

    Raises:
        _TooSlowError: it will not be faster than `best`.
    """
    if is_emulated(name):
        raise _TooSlowError("this machine has no units for its precision and would emulate it")
    counts_NCE, _ = load_golden(candidates.bundle)
    budget_s = candidates.edge.latency_budget_ms / 2e3
    if name == "openvino-int8":
        _check_bright(candidates, name, counts_NCE)
    most = batch_of(name, candidates.edge.batch_frames)
    if best is not None and name.startswith("openvino") and best.name.startswith("openvino"):
        batch_frames = best.runtime.batch_frames  # another precision of it: no probe, which would be compiled
    else:
        batch_frames = _guess(candidates, name, counts_NCE, budget_s, 0.0 if best is None else best.frames_per_s)
    while True:
        runtime, difference = candidates.proven(name, batch_frames)
        try:
            tiled_NCE = _tiled(counts_NCE, 4 * batch_frames)
            took_s = batch_s(runtime, tiled_NCE)
            # The guess was from a small batch, and on a GPU a large one may take no longer.
            grows = batch_frames < most and took_s <= budget_s / 4
            if not grows and (batch_frames == 1 or took_s <= budget_s):
                rate = frames_per_s(runtime, tiled_NCE, _MEASURE_S)
                return _Measured(name=name, runtime=runtime, frames_per_s=rate, relative_rms=difference)
        except BaseException:
            runtime.close()
            raise
        runtime.close()
        if grows:
            batch_frames = min(most, 2 * batch_frames)
        else:
            batch_frames = most = batch_frames // 2


def _check_bright(candidates: Candidates, name: str, counts_NCE: npt.NDArray[np.uint8]) -> None:
    runtime, exact = candidates.made(name, len(counts_NCE)), _exact(candidates, len(counts_NCE))
    tolerance = catalog.get(candidates.model.name).tolerance
    try:
        check_bright(runtime, exact, counts_NCE, tolerance=tolerance)
    finally:
        runtime.close()
        exact.close()


def _exact(candidates: Candidates, batch_frames: int) -> InferenceRuntime:
    """One in full precision: the first that is up."""
    try:
        return candidates.made("onnxruntime", batch_frames)
    except ConfigError:
        return candidates.made("torch", batch_frames)


def _guess(
    candidates: Candidates, name: str, counts_NCE: npt.NDArray[np.uint8], budget_s: float, to_beat: float
) -> int:
    """The largest half, quarter, ... of `edge.batch_frames` that should be within the budget, from one small batch.

    Raises:
        _TooSlowError: it will not make `to_beat` frames a second.
    """
    batch_frames = batch_of(name, candidates.edge.batch_frames)
    small = min(PROBE_FRAMES, batch_frames)
    runtime = candidates.made(name, small)
    try:
        frame_s = batch_s(runtime, _tiled(counts_NCE, small), repeats=_PROBES) / small
    finally:
        runtime.close()
    if _HOPE / frame_s < to_beat:
        raise _TooSlowError(
            f"{name} makes {1 / frame_s:,.0f} frames/s in batches of {small}; another one makes {to_beat:,.0f}"
        )
    while batch_frames > small and batch_frames * frame_s > budget_s:
        batch_frames //= 2
    return batch_frames


def _named(candidates: Candidates, difference: float) -> RuntimeChoice:
    edge = candidates.edge
    return RuntimeChoice(
        name=edge.runtime,
        batch_frames=batch_of(edge.runtime, edge.batch_frames),
        reason="named in the site file",
        frames_per_s={},
        relative_rms={edge.runtime: difference},
        dropped={},
        key=candidates.key(),
    )


def _kept(cache: Path, key: str) -> RuntimeChoice | None:
    if not cache.exists():
        return None
    try:
        choice = RuntimeChoice.read(cache)
    except DataError as exc:
        _log.info("the kept choice of a runtime is of no use: %s", exc.message)
        return None
    return choice if choice.key == key else None


def _tiled(counts_NCE: npt.NDArray[np.uint8], frames: int) -> npt.NDArray[np.uint8]:
    return counts_NCE[np.arange(frames) % len(counts_NCE)]
