"""A detector that never makes the edge wait, and the proof that what it delivered was inferred and staged.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.documents import Accounting
from filmloop.core.types import FrameBlock
from filmloop.edge.models import ModelStore
from filmloop.ports.registry import CHAMPION
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

STREAM = "bench"
POOL_FRAMES = 8192
"""Drawn once and shown again and again: 16 MB, more than the caches hold, so frames come from memory as they would."""


def site(**edge: float) -> SiteConfig:
    """The default site, with frames as fast as they are taken; keyword arguments set keys of `[edge]`."""
    return parse_site({"source": {"kind": "simulator", "rate_hz": 0.0}, "edge": edge})


def draw_pool(config: SiteConfig, frames: int = POOL_FRAMES) -> npt.NDArray[np.uint8]:
    """Frames of the default simulated detector, uint8 (N, C, E)."""
    return CookieBoxSimulator(Conditions(), seed=1, frame_shape=config.frame_shape).frames(0, frames).counts_NCE


class PoolSource:
    """Consecutive pulse ids; frame i shows number i % POOL_FRAMES of the pool. Blocks are views: it costs nothing.

    Args:
        pool_NCE: What `draw_pool` gave.

    Attributes:
        until_s: Monotonic time at which the data end.
        opened_s: When the service began to read.
        handed_s: When the newest block was handed over.
        delivered: Frames handed over.
    """

    stream, labelled = STREAM, False

    def __init__(self, pool_NCE: npt.NDArray[np.uint8], *, until_s: float = float("inf")) -> None:
        self.frame_shape = (pool_NCE.shape[1], pool_NCE.shape[2])
        self.until_s, self.opened_s, self.handed_s, self.delivered = until_s, 0.0, 0.0, 0
        self._pool_NCE = pool_NCE
        self._flags_N = np.zeros(len(pool_NCE), np.uint8)

    def open(self, *, after: tuple[int, int] | None) -> None:
        """See the port."""
        self.opened_s = time.monotonic()

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """See the port."""
        if time.monotonic() >= self.until_s:
            return None
        first = self.delivered
        start = first % len(self._pool_NCE)
        counts_NCE = self._pool_NCE[start : start + max_frames]
        self.delivered += len(counts_NCE)
        block = FrameBlock(
            run_number=1,
            pulse_id_N=np.arange(first, self.delivered, dtype=np.uint64),
            counts_NCE=counts_NCE,
            flags_N=self._flags_N[: len(counts_NCE)],
        )
        self.handed_s = time.monotonic()
        return block

    def close(self) -> None:
        """See the port."""


def registry_of(folder: Path, *, seeds: tuple[int, ...]) -> MemoryRegistry:
    """A registry in this process with one real bundle of the default network for each seed; the first is champion."""
    registry = MemoryRegistry(folder / "registry")
    for seed in seeds:
        bundle = make_model_bundle(folder / f"bundle-{seed}", seed=seed)
        registry.register(bundle, key=str(seed), description="", tags={}, metrics={})
    registry.set_alias(CHAMPION, "1")
    return registry


def remember_champion(config: SiteConfig, home: Home, registry: MemoryRegistry) -> None:
    """Have the edge of `home` start with the champion, so that its first frame is inferred."""
    info, store = registry.get(CHAMPION), ModelStore(config, home)
    assert info is not None
    store.fetch(registry, info)
    store.remember(info.version, info.bundle_digest)


def staged_versions(home: Home) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Pulse id and version of every frame in sealed shards, whose hashes are checked."""
    readers = [ShardReader(shard.manifest_path, check="hashes") for shard in sealed_shards(home.stage, STREAM)]
    ids_N = np.concatenate([np.zeros(0, np.uint64), *(reader.pulse_id_N for reader in readers)])
    version_N = np.concatenate([np.zeros(0, np.uint32), *(reader.version_N for reader in readers)])
    return ids_N, version_N


def lost_frames(ids_N: npt.NDArray[np.uint64], delivered: int, accounting: Accounting) -> int:
    """Frames that were delivered and not inferred, or are not in a sealed shard, or are there twice."""
    times_N = np.bincount(ids_N.astype(np.int64), minlength=delivered)
    return int((times_N != 1).sum()) + delivered - accounting.frames_inferred
