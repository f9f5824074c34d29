"""How fast each runtime of this machine runs a network, beside its peers in the same run.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from filmloop.core.errors import ConfigError
from filmloop.edge.runtimes.machine import cores
from filmloop.edge.runtimes.make import NAMES, make_runtime
from filmloop.edge.runtimes.measure import frames_per_s
from filmloop.ports.runtime import InferenceRuntime
from filmloop.testing.models import make_model_bundle
from filmloop.training.bundle_out import GOLDEN_FRAMES
from filmloop.training.load import load_module
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

FRAME_SHAPE = (16, 128)
BATCH = {"mixer": 256, "unrolled": 256, "cookienet": 64}
_ROUNDS = 3
_PEERS = ("onnxruntime", "torch-eager")


def measure(model: str, seconds: float) -> dict[str, Any]:
    """Frames a second of every runtime that there is, keys only, on simulated frames: the best of rounds that take turns.

    Args:
        model: `mixer`, `unrolled` or `cookienet`, with untrained weights, for frames of 16 x 128.
        seconds: For all of it, about.

    Returns:
        `frames_per_s`, `relative_rms` (from float32 rates), `to_onnxruntime` and `to_torch_eager` (ratios of rates) by
        runtime, `batch_frames`, `threads`, `rounds`, `seconds_each`. `torch-eager` is PyTorch as one would write it,
        float32 frames and rates, no keys.
    """
    if model not in BATCH:
        raise ConfigError(f"There is no measurement of {model!r}.", hint=f"Name one of {', '.join(BATCH)}.")
    counts_NCE = CookieBoxSimulator(Conditions(), seed=1, frame_shape=FRAME_SHAPE).frames(0, 4096).counts_NCE
    batch_frames, rates = BATCH[model], {}
    with tempfile.TemporaryDirectory(prefix="filmloop-bench-") as folder:
        bundle = make_model_bundle(
            Path(folder) / "bundle",
            frame_shape=FRAME_SHAPE,
            model=model,
            onnx=True,
            golden_NCE=counts_NCE[-GOLDEN_FRAMES:],
        )
        runtimes = _runtimes(bundle, batch_frames)
        module = load_module(bundle)
        torch.set_num_threads(cores())
        with torch.inference_mode():
            exact_NCE = module(torch.from_numpy(counts_NCE[:batch_frames].astype(np.float32))).numpy()
        each_s = seconds / (_ROUNDS * (len(runtimes) + 1))
        rates = dict.fromkeys((*runtimes, "torch-eager"), 0.0)
        for _ in range(_ROUNDS):
            for name, runtime in runtimes.items():
                frames_per_s(runtime, counts_NCE, each_s / 10)
                rates[name] = max(rates[name], frames_per_s(runtime, counts_NCE, each_s))
            rates["torch-eager"] = max(
                rates["torch-eager"], eager_frames_per_s(module, counts_NCE, batch_frames, each_s)
            )
        different = {
            name: _relative(runtime, counts_NCE[:batch_frames], exact_NCE) for name, runtime in runtimes.items()
        }
        for runtime in runtimes.values():
            runtime.close()
    peers = {peer: rates.get(peer) for peer in _PEERS}
    return {
        "model": model,
        "frames_per_s": {name: round(rate) for name, rate in rates.items()},
        "relative_rms": different,
        "to_onnxruntime": _ratios(rates, peers["onnxruntime"]),
        "to_torch_eager": _ratios(rates, peers["torch-eager"]),
        "batch_frames": batch_frames,
        "threads": cores(),
        "rounds": _ROUNDS,
        "seconds_each": each_s,
    }


def _runtimes(bundle: Path, batch_frames: int) -> dict[str, InferenceRuntime]:
    made: dict[str, InferenceRuntime] = {}
    for name in NAMES:
        try:
            made[name] = make_runtime(name, bundle, version="1", frame_shape=FRAME_SHAPE, batch_frames=batch_frames)
        except ConfigError:
            continue
    return made


def eager_frames_per_s(
    module: torch.nn.Module, counts_NCE: npt.NDArray[np.uint8], batch_frames: int, seconds: float
) -> float:
    """Frames a second of PyTorch as one would write it: float32 frames in, rates out."""
    frame_NCE = torch.from_numpy(counts_NCE.astype(np.float32))
    done, begun_s = 0, time.perf_counter()
    with torch.inference_mode():
        while done == 0 or time.perf_counter() - begun_s < seconds:
            start = done % (len(frame_NCE) - batch_frames + 1)
            module(frame_NCE[start : start + batch_frames])
            done += batch_frames
    return done / (time.perf_counter() - begun_s)


def _relative(
    runtime: InferenceRuntime, counts_NCE: npt.NDArray[np.uint8], exact_NCE: npt.NDArray[np.float32]
) -> float:
    difference_NCE = runtime.infer(counts_NCE) - exact_NCE
    return float(np.sqrt(np.mean(np.square(difference_NCE)) / np.mean(np.square(exact_NCE))))


def _ratios(rates: dict[str, float], peer: float | None) -> dict[str, float] | None:
    return None if not peer else {name: round(rate / peer, 2) for name, rate in rates.items()}
