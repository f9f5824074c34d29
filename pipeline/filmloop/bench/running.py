"""An edge as a facility runs it, stages in processes, for a benchmark to look at: with a model, a pool of frames, a registry.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from filmloop.bootstrap import Site, open_source, stage_spec
from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.core.documents import Accounting
from filmloop.edge.models import ModelStore
from filmloop.edge.service import EdgeService
from filmloop.edge.status import EdgeStatus, read_status
from filmloop.edge.tally import neither
from filmloop.ports.registry import CHAMPION
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.testing.fakes import FolderRegistry
from filmloop.testing.models import make_model_bundle
from filmloop.training.bundle_out import GOLDEN_FRAMES
from filmloop_models.cookiebox.conditions import Conditions
from filmloop_models.cookiebox.simulator import CookieBoxSimulator

POOL_FRAMES = 16384
"""Drawn once and shown again and again: 32 MB, more than the caches hold, so frames come from memory as they would."""


def bench_site(folder: Path, *, rate_hz: float, **sections: dict[str, object]) -> Site:
    """The default site with a pool of simulated frames; keyword arguments add to its sections."""
    values: dict[str, dict[str, object]] = {
        "source": {"kind": "simulator", "stream": "bench", "rate_hz": rate_hz, "pool_frames": POOL_FRAMES},
        "edge": {"status_every_s": 0.1},
        # Whoever measures looks at every shard: nothing goes before that.
        "staging": {"keep_shards": 10**6, "max_shards": 10**6},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Site(file=folder / "site.toml", config=parse_site(values), home=Home(folder / "home"))


def pool_NCE(frames: int = POOL_FRAMES) -> npt.NDArray[np.uint8]:
    """The frames that the edge sees, uint8 (N, C, E): frame i shows number i % POOL_FRAMES."""
    return CookieBoxSimulator(Conditions(), seed=1).frames(0, frames).counts_NCE


class RunningEdge:
    """One edge with a champion from the beginning. Use as a context manager.

    Args:
        site: What `bench_site` gave.
        folder: Where registry and bundles go.
        seeds: One version of `mixer` for each, with weights of its own; the first is champion.
        watched: Whether the edge looks at the registry.

    Attributes:
        runtime_name: What serves here.
        bundles: Folders of the versions' bundles, in order.
    """

    def __init__(self, site: Site, folder: Path, *, seeds: Sequence[int] = (1,), watched: bool = False) -> None:
        self.site, self.registry = site, FolderRegistry(folder / "registry")
        golden_NCE = pool_NCE(GOLDEN_FRAMES)
        self.bundles = [
            make_model_bundle(folder / f"bundle-{seed}", seed=seed, onnx=True, golden_NCE=golden_NCE) for seed in seeds
        ]
        for seed, bundle in zip(seeds, self.bundles, strict=True):
            self.registry.register(bundle, key=str(seed), description="", tags={}, metrics={})
        self.registry.set_alias(CHAMPION, "1")
        store, info = ModelStore(site.config, site.home), self.registry.get(CHAMPION)
        assert info is not None
        proven = store.fetch(self.registry, info)
        self.runtime_name = proven.runtime.name
        proven.runtime.close()
        store.remember(info.version, info.bundle_digest)
        self._service = EdgeService(
            config=site.config,
            home=site.home,
            source=open_source(site),
            registry=None,
            stage_argv=(sys.executable, "-m", "filmloop.testing.edge_stage"),
            spec={
                **stage_spec(site, with_registry=watched),
                "registry": str(folder / "registry"),
            },
        )
        self._stop = threading.Event()
        self._outcome: list[Accounting | BaseException] = []
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        """Start it; returns once frames are inferred and staged."""
        self._thread.start()
        try:
            self.wait_for(lambda status: status.frames_inferred > 0 and status.frames_waiting < status.frames_in)
        except BaseException:
            self._stop.set()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _exc: object, _trace: TracebackType | None) -> None:
        """Stop it, and raise what it raised."""
        self._stop.set()
        self._thread.join()
        if kind is None and isinstance(self._outcome[0], BaseException):
            raise self._outcome[0]

    @property
    def accounting(self) -> Accounting:
        """What became of every frame, once it has stopped."""
        outcome = self._outcome[0]
        assert isinstance(outcome, Accounting)
        return outcome

    def status(self) -> EdgeStatus:
        """What it says of itself."""
        status = read_status(self.site.home)
        assert status is not None
        return status

    def wait_for(self, wanted: Callable[[EdgeStatus], bool], deadline_s: float = 120.0) -> EdgeStatus:
        """Until its status is as wanted; returns that.

        Raises:
            TimeoutError: it never was.
        """
        end_s = time.monotonic() + deadline_s
        while (status := read_status(self.site.home)) is None or not wanted(status):
            if time.monotonic() >= end_s or not self._thread.is_alive():
                raise TimeoutError(f"not in {deadline_s} s: {status} {self._outcome}")
            time.sleep(0.05)
        return status

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each stage so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {}
        for role, pid in self.status().stages.items():
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
            used[role] = (int(fields[11]) + int(fields[12])) / ticks
        return used

    def rss_mb(self) -> dict[str, float]:
        """Memory of each stage, the ring included where it was touched."""
        page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
        return {
            role: int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * page_mb
            for role, pid in self.status().stages.items()
        }

    def _work(self) -> None:
        try:
            self._outcome.append(self._service.run(self._stop))
        except BaseException as exc:
            self._outcome.append(exc)


class ShardChecker(threading.Thread):
    """Reads sealed shards behind the edge, counts their frames, and removes them: for runs that would fill the disk.

    Args:
        stage: Folder of the shards.

    Attributes:
        frames: Frames found.
        again: Those of them that had been found before.
    """

    def __init__(self, stage: Path) -> None:
        super().__init__(name="checker", daemon=True)
        self.frames = self.again = 0
        self._stage, self._done, self._last_id = stage, threading.Event(), -1

    def run(self) -> None:
        """The thread: until `finish`."""
        while not self._done.wait(0.5):
            self._look(keep=2)

    def finish(self) -> None:
        """Look at what is left."""
        self._done.set()
        self.join()
        self._look(keep=0)

    def judge(self, reader: ShardReader) -> None:
        """Count one shard. The pool's ids rise: one that does not was staged before."""
        ids_N = reader.pulse_id_N.astype(np.int64)
        highest_N = np.maximum.accumulate(np.concatenate([[self._last_id], ids_N]))
        self.again += int((ids_N <= highest_N[:-1]).sum())
        self._last_id = int(highest_N[-1])
        self.frames += len(ids_N)

    def lost(self, accounting: Accounting) -> int:
        """Frames not inferred, and frames that are not exactly once in a shard."""
        uninferred, unstaged = accounting.frames_in - accounting.frames_inferred, accounting.frames_in - self.frames
        return uninferred + unstaged - neither(accounting) + 2 * self.again

    def _look(self, keep: int) -> None:
        shards = sealed_shards(self._stage, "bench")
        for shard in shards[: len(shards) - keep]:
            self.judge(ShardReader(shard.manifest_path))
            shutil.rmtree(shard.group_path)
            shard.manifest_path.unlink()
