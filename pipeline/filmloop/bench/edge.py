"""The whole edge at full speed: pool -> ring -> inference -> ring -> sealed, hashed, fsynced shards, nothing lost.

Peers in the same run, before and after it:

- `bare`: the same runtime on the same frames with the whole machine to itself, keys only, as the edge asks for them, in
  batches of its own size or in the large ones of an edge that is behind, whatever is faster; `bare_dense` with all
  rates delivered.
- `yardstick`: the least program that stages frames on this machine (`filmloop.bench.yardstick`), and the same without
  staging: bare OpenVINO on the network as it was exported, in the precision that is fastest here
  (`yardstick_precision`). Left out where there is no OpenVINO.
- bare ONNX Runtime in float32, and PyTorch as one would write it.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.bench.inference import eager_frames_per_s
from filmloop.bench.running import RunningEdge, bench_site, pool_NCE
from filmloop.bench.yardstick import yardstick
from filmloop.bundle import ONNX
from filmloop.core.documents import Accounting
from filmloop.edge.runtimes.machine import cores
from filmloop.edge.runtimes.make import batch_of, make_runtime
from filmloop.edge.runtimes.measure import frames_per_s
from filmloop.edge.runtimes.torch_cpu import use_threads
from filmloop.edge.tally import neither
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.training.load import load_module

_FRAME_SHAPE = (16, 128)


def measure(seconds: float, folder: Path, *, runtime: str = "auto", ring_mb: float = 128.0) -> dict[str, Any]:
    """Run the edge for `seconds`, its peers a sixth of that each before and after.

    Args:
        seconds: How long frames are counted.
        folder: Where to write, some 100 MB a second; a disk, not a tmpfs.
        runtime: A value of `edge.runtime`.
        ring_mb: The value of `edge.ring_mb`.

    Returns:
        `frames_in`, `frames_out` (in sealed shards), `lost`; `rate_hz` of frames taken into shards, `bare_rate_hz` and
        `ratio`, the other peers and ratios to them; CPU cores of each stage.
    """
    site = bench_site(folder, rate_hz=0.0, edge={"runtime": runtime, "ring_mb": ring_mb})
    counts_NCE = pool_NCE()
    np.save(folder / "pool.npy", counts_NCE)
    edge = RunningEdge(site, folder)
    chosen = edge.runtime_name
    rates: dict[str, list[float]] = defaultdict(list)
    precision = _peers(rates, edge.bundles[0], counts_NCE, folder / "pool.npy", chosen, seconds / 6)
    with edge:
        before, cpu_before, begun_s = edge.status(), edge.cpu_s(), time.monotonic()
        time.sleep(seconds)
        after, cpu_after, took_s = edge.status(), edge.cpu_s(), time.monotonic() - begun_s
        memory_mb = edge.rss_mb()
    _peers(rates, edge.bundles[0], counts_NCE, folder / "pool.npy", chosen, seconds / 6)
    staged, lost = count_lost(site.home.stage, edge.accounting)
    rate = (_taken(after) - _taken(before)) / took_s
    peers = {name: statistics.mean(values) for name, values in rates.items()}
    return {
        "frames_in": edge.accounting.frames_in,
        "frames_out": staged,
        "lost": lost,
        "seconds": round(took_s, 1),
        "rate_hz": round(rate),
        "bare_rate_hz": round(peers["bare"]),
        "ratio": round(rate / peers["bare"], 3),
        "peers_hz": {name: round(value) for name, value in peers.items()},
        "peers_hz_before_after": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratio_to": {name: round(rate / value, 3) for name, value in peers.items()},
        "cores": {role: round((cpu_after[role] - cpu_before[role]) / took_s, 2) for role in cpu_after},
        "rss_mb": {role: round(value) for role, value in memory_mb.items()},
        "runtime": chosen,
        "yardstick_precision": precision,
        "batch_frames": after.choice.batch_frames if after.choice else 0,
        "quality_frames": after.quality.frames if after.quality else 0,
        "model": site.config.model.name,
        "frame_shape": list(site.config.frame_shape),
        "threads": cores(),
    }


def count_lost(stage: Path, accounting: Accounting) -> tuple[int, int]:
    """Frames in sealed shards, whose hashes are checked; and frames that are not there, or there twice, or not inferred."""
    ids = [ShardReader(shard.manifest_path, check="hashes").pulse_id_N for shard in sealed_shards(stage, "bench")]
    ids_N = np.concatenate([np.zeros(0, np.uint64), *ids])
    times_N = np.bincount(ids_N.astype(np.int64), minlength=accounting.frames_in)
    uninferred = accounting.frames_in - accounting.frames_inferred
    return len(ids_N), int((times_N != 1).sum()) + uninferred - neither(accounting)


def _taken(status: Any) -> int:
    return int(status.frames_in - status.frames_waiting)


def _peers(
    rates: dict[str, list[float]],
    bundle: Path,
    counts_NCE: npt.NDArray[np.uint8],
    pool: Path,
    chosen: str,
    seconds: float,
) -> str:
    """One round of all peers; returns the precision of the yardstick."""
    each_s, precision = seconds / 3, ""
    if importlib.util.find_spec("openvino") is not None:
        staged = yardstick(bundle / ONNX, pool, seconds, staged=True)
        bare = yardstick(bundle / ONNX, pool, each_s, staged=False)
        rates["yardstick"].append(staged.frames_per_s)
        rates["yardstick_bare"].append(bare.frames_per_s)
        precision = bare.precision
    for name, runtime, dense in (
        ("bare", chosen, False),
        ("bare_dense", chosen, True),
        ("onnxruntime", "onnxruntime", True),
    ):
        batch_frames = batch_of(runtime, 0)
        made = make_runtime(runtime, bundle, version="1", frame_shape=_FRAME_SHAPE, batch_frames=batch_frames)
        try:
            best_hz = 0.0
            for size in {made.batch_frames} if dense else {made.batch_frames, made.most_frames}:
                frames_per_s(made, counts_NCE, each_s / 4, dense=dense, batch_frames=size)
                best_hz = max(best_hz, frames_per_s(made, counts_NCE, each_s, dense=dense, batch_frames=size))
            rates[name].append(best_hz)
        finally:
            made.close()
    use_threads(cores())
    rates["torch_eager"].append(eager_frames_per_s(load_module(bundle), counts_NCE, 256, each_s))
    return precision
