"""The whole edge at full speed: frames in memory -> inference -> results -> sealed Zarr shards on disk.

Its peer is what the network alone can do: bare eager PyTorch on the same batches with as many threads, in the same
run, round about. The service's clock runs from its first read until its last shard is durable. Nothing may be lost:
every pulse id is read back from the shards, whose hashes are checked.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _common import median, options, report, say, scratch, spread
from _stream import PoolSource, draw_pool, lost_frames, registry_of, remember_champion, site, staged_versions

from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.edge.runtimes import use_threads
from filmloop.edge.service import EdgeService
from filmloop.testing.fakes import MemoryRegistry
from filmloop.training.load import load_module


def bare_rate(module: torch.nn.Module, pool_NCE: npt.NDArray[np.uint8], batch_frames: int, seconds: float) -> float:
    """Frames a second of the network alone: uint8 batch to float32, forward, in eager mode."""
    frames, begun_s = 0, time.monotonic()
    counts = torch.from_numpy(pool_NCE)
    with torch.inference_mode():
        while time.monotonic() - begun_s < seconds:
            start = frames % len(counts)
            frames += len(module(counts[start : start + batch_frames].float()))
    return frames / (time.monotonic() - begun_s)


def service_round(
    config: SiteConfig, home: Home, registry: MemoryRegistry, pool_NCE: npt.NDArray[np.uint8], seconds: float
) -> tuple[int, int, int, float]:
    """Run the service for `seconds` and until all is staged; returns frames in, staged, lost, and frames a second."""
    remember_champion(config, home, registry)
    source = PoolSource(pool_NCE)
    service = EdgeService(config=config, home=home, source=source, registry=lambda: registry)
    source.until_s = time.monotonic() + seconds
    accounting = service.run(threading.Event())
    took_s = time.monotonic() - source.opened_s
    ids_N, _ = staged_versions(home)
    lost = lost_frames(ids_N, source.delivered, accounting)
    return source.delivered, len(ids_N), lost, source.delivered / took_s


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of inference; staging has one of its own")
    args = parser.parse_args()
    rounds, bare_s, service_s = (1, 0.3, 1.0) if args.quick else (args.rounds, 2.0, 4.0)
    config = site(threads=args.threads)
    pool_NCE = draw_pool(config)
    bare, whole, ratios, frames_in, frames_out, lost = [], [], [], 0, 0, 0
    with scratch(args.folder) as folder:
        registry = registry_of(folder, seeds=(1,))
        module = load_module(Path(folder, "bundle-1")).eval()
        use_threads(args.threads)
        bare_rate(module, pool_NCE, config.edge.batch_frames, bare_s / 4)
        for number in range(rounds):
            bare.append(bare_rate(module, pool_NCE, config.edge.batch_frames, bare_s))
            home = Home(folder / f"home-{number}")
            came, staged, missing, rate = service_round(config, home, registry, pool_NCE, service_s)
            frames_in, frames_out, lost = frames_in + came, frames_out + staged, lost + missing
            whole.append(rate)
            ratios.append(rate / bare[-1])
            say(f"round {number}: bare {bare[-1]:,.0f}/s, service {rate:,.0f}/s, lost {missing}")
    values = {
        "frames_in": frames_in,
        "frames_out": frames_out,
        "lost": lost,
        "rate_hz": median(whole, 0),
        "rate_hz_range": spread(whole, 0),
        "bare_rate_hz": median(bare, 0),
        "bare_rate_hz_range": spread(bare, 0),
        "ratio": median(ratios),
        "ratio_range": spread(ratios),
        "threads": args.threads,
        "batch_frames": config.edge.batch_frames,
        "rounds": rounds,
        "model": config.model.name,
        "frame_shape": list(config.frame_shape),
    }
    report("edge", values, packages=("torch", "zarr", "numpy"), quick=args.quick)


if __name__ == "__main__":
    main()
