"""Inference on one CUDA GPU: is it right, how fast is it, and do new weights really serve after a swap?

Needs torch, NumPy and this checkout, nothing else; `pip install torch numpy`, then `python benchmarks/gpu.py`. Without a GPU it
says so and ends well. One JSON line for each model, as it is and tuned (`edge.tune`):

- `relative_rms`: served rates against float64 on the CPU; a model's `tolerance` is the most it may be.
- `frames_per_s`, `dense_frames_per_s`: uint8 in host memory to keys (and rates) in host memory, all copies included.
- `device_frames_per_s`: replays of the captured graph alone, and `fraction_of_floor`: its share of the better of what the
  operations and the bytes of the network allow (`floors`).
- `small_p50_ms`, `small_p99_ms`: one batch of 16 frames, start to result, nothing else under way.
- `first_batch_s`: the very first batch, its graph captured and, tuned, its network compiled within.
- `swap_ok`: after `put_weights` the captured graphs give what float64 makes of the new weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "pipeline"), str(CHECKOUT / "models")]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from filmloop.edge.runtimes.cuda import CudaRuntime, is_available  # noqa: E402
from filmloop.edge.runtimes.measure import frames_per_s  # noqa: E402
from filmloop_models import catalog  # noqa: E402

SHAPES = {"mixer": (16, 128), "cookienet": (16, 128), "cookienet128": (128, 128)}
CASES = (("mixer", False), ("cookienet", False), ("cookienet", True), ("cookienet128", False), ("cookienet128", True))
BATCH = {"mixer": 4096, "cookienet": 4096, "cookienet128": 512}
CHECK_FRAMES, SMALL_FRAMES = 48, 16
# Attainable dense bf16 operations and bytes a second: 80 % and 90 % of the data sheets' H200 989e12 and 4.8e12,
# H100 SXM 989e12 and 3.35e12, A100 SXM 80 GB 312e12 and 2.04e12.
PEAKS = {"H200": (790e12, 4.3e12), "H100": (790e12, 3.0e12), "A100": (250e12, 1.84e12)}


def network(name: str, seed: int) -> nn.Module:
    """An untrained network with its weights spread apart: as they start, all give nearly the same flat rate."""
    torch.manual_seed(seed)
    module = catalog.get(name).module(SHAPES[name]).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def draw(name: str, frames: int) -> npt.NDArray[np.uint8]:
    """Counts of a sinusoid of lines at 300 hits a frame and channel 16, on a dark level."""
    channels, bins = SHAPES[name]
    rng = np.random.default_rng(1)
    angle_C = 2 * np.pi * np.arange(channels) / channels
    line_NC = bins / 2 + bins / 4 * np.cos(angle_C - rng.uniform(0, 2 * np.pi, (frames, 1)))
    rate_NCE = 0.01 + 3.0 * np.exp(-0.5 * ((np.arange(bins) - line_NC[..., None]) / 2.5) ** 2)
    return rng.poisson(rate_NCE).astype(np.uint8)


def relative_rms(runtime: CudaRuntime, module: nn.Module, counts_NCE: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Served rates and keys of a batch against float64, first and last frames of it: relative RMS, and median
    difference of keys in rad."""
    looked_N = np.r_[: CHECK_FRAMES // 2, -(CHECK_FRAMES // 2) : 0]
    with torch.no_grad():
        exact_NCE = module.double()(torch.from_numpy(counts_NCE[looked_N].astype(np.float64))).numpy()
    module.float()
    with_rates, keys = runtime.start(counts_NCE, dense=True).result(), runtime.start(counts_NCE).result()
    sort_key = catalog.get("mixer").sort_key
    assert with_rates.rate_NCE is not None
    assert sort_key is not None
    rate_NCE = with_rates.rate_NCE[looked_N]
    difference = float(np.sqrt(np.mean(np.square(rate_NCE - exact_NCE)) / np.mean(np.square(exact_NCE))))
    exact_N = sort_key(exact_NCE)
    apart = [
        float(np.median(np.abs(np.angle(np.exp(1j * (served.phase_N[looked_N] - exact_N))))))
        for served in (with_rates, keys)
    ]
    return difference, max(apart)


def floors(module: nn.Module, frame_shape: tuple[int, int], device: str) -> dict[str, float | None]:
    """Operations and bytes of one frame, and the frames a second that they allow on this device.

    Operations: two for each multiplication with a weight. Bytes: of a network of linear layers, which fits a chip's
    memory as a whole, frame and rates once in bf16; of one with convolutions, input and output of every convolution
    once in bf16, with activations and pools fused into them.
    """
    work = {"operations": 0, "bytes": 0, "convolutions": 0}

    def count(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            work["operations"] += 2 * made.numel() * layer.in_features
        if isinstance(layer, nn.Conv2d):
            work["operations"] += 2 * made.numel() * layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):
            work["operations"] += 2 * given[0].numel() * layer.weight[0].numel()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            work["convolutions"] += 1
            work["bytes"] += 2 * (given[0].numel() + made.numel())

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.no_grad():
        module(torch.zeros(1, *frame_shape))
    for hook in hooks:
        hook.remove()
    size_bytes = work["bytes"] if work["convolutions"] else 4 * frame_shape[0] * frame_shape[1]
    peak = next((peaks for name, peaks in PEAKS.items() if name in device), None)
    allowed = None if peak is None else min(peak[0] / work["operations"], peak[1] / size_bytes)
    return {
        "operations_per_frame": work["operations"],
        "bytes_per_frame": size_bytes,
        "floor_frames_per_s": None if allowed is None else round(allowed),
    }


def small_ms(runtime: CudaRuntime, counts_NCE: npt.NDArray[np.uint8], repeats: int) -> tuple[float, float]:
    """50th and 99th percentile of one small batch alone."""
    took_ms = []
    for number in range(repeats + 10):
        begun_s = time.perf_counter()
        runtime.start(counts_NCE[:SMALL_FRAMES]).result()
        if number >= 10:
            took_ms.append((time.perf_counter() - begun_s) * 1e3)
    return float(np.percentile(took_ms, 50)), float(np.percentile(took_ms, 99))


def measure(name: str, *, seconds: float, tuned: bool) -> dict[str, Any]:
    """All values of one model."""
    spec, device = catalog.get(name), torch.cuda.get_device_name()
    old, new = network(name, 1), network(name, 2)
    counts_NCE = draw(name, 2 * BATCH[name])
    runtime = CudaRuntime(
        old,
        version="1",
        frame_shape=SHAPES[name],
        batch_frames=BATCH[name],
        sort_key=spec.sort_key,
        tuned=tuned,
    )
    # A full batch, which is what a tuned network serves, though float64 looks at its first frames only.
    check_NCE = counts_NCE[: BATCH[name]]
    begun_s = time.perf_counter()
    runtime.start(check_NCE).result()
    first_s = time.perf_counter() - begun_s
    difference, key_rad = relative_rms(runtime, old, check_NCE)
    rates = [frames_per_s(runtime, counts_NCE, seconds) for _ in range(3)]
    dense = [frames_per_s(runtime, counts_NCE, seconds, dense=True) for _ in range(3)]
    replays = max(3, int(seconds * max(rates) / BATCH[name]))
    device_hz = max(replays * BATCH[name] / runtime.replays_s(replays) for _ in range(3))
    p50_ms, p99_ms = small_ms(runtime, counts_NCE, 200 if seconds < 1 else 2000)
    runtime.put_weights(new, version="2")
    after, _ = relative_rms(runtime, new, check_NCE)
    stale, _ = relative_rms(runtime, old, check_NCE)
    floor = floors(old, SHAPES[name], device)
    allowed = floor["floor_frames_per_s"]
    runtime.close()
    return {
        "model": name,
        "tuned": tuned,
        "ok": difference <= spec.tolerance and key_rad <= spec.tolerance,
        "relative_rms": difference,
        "tolerance": spec.tolerance,
        "key_median_rad": key_rad,
        "frames_per_s": round(max(rates)),
        "dense_frames_per_s": round(max(dense)),
        "device_frames_per_s": round(device_hz),
        **floor,
        "fraction_of_floor": None if allowed is None else round(device_hz / allowed, 4),
        "small_p50_ms": round(p50_ms, 4),
        "small_p99_ms": round(p99_ms, 4),
        "first_batch_s": round(first_s, 3),
        "swap_ok": after <= spec.tolerance < stale,
        "relative_rms_after_swap": after,
        "relative_rms_to_old_weights": stale,
        "batch_frames": BATCH[name],
        "frame_shape": SHAPES[name],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works; its numbers mean nothing")
    parser.add_argument("--folder", type=Path, help="nothing is written; taken because every benchmark takes it")
    args = parser.parse_args()
    if not is_available():
        print("no CUDA device: not measured", file=sys.stderr)
        print(json.dumps({"benchmark": "gpu", "skipped": "no CUDA device"}))
        return 0
    failed = False
    for name, tuned in CASES:
        values = measure(name, seconds=0.1 if args.quick else 1.0, tuned=tuned)
        failed = failed or not (values["ok"] and values["swap_ok"])
        line = {
            "benchmark": "gpu",
            **values,
            "quick": args.quick,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "machine": {
                "gpu": torch.cuda.get_device_name(),
                "cpu": platform.machine(),
                "cores": torch.get_num_threads(),
            },
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "numpy": np.__version__,
            },
        }
        print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
