"""A scripted detector and a look at what an edge staged: for tests of the edge service.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmloop.config.loader import parse_site
from filmloop.config.paths import Home
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import FilmloopError
from filmloop.core.types import FrameBlock
from filmloop.staging.catalog import SealedShard, sealed_shards
from filmloop.staging.reader import ShardReader

FRAME_SHAPE = (4, 16)
POOL_FRAMES = 64
STREAM = "scripted"


def pool(frame_shape: tuple[int, int] = FRAME_SHAPE) -> npt.NDArray[np.uint8]:
    """The distinct frames of a ScriptedSource, (POOL_FRAMES, C, E) uint8; pulse id i shows number i % POOL_FRAMES."""
    return np.random.default_rng(5).poisson(0.5, (POOL_FRAMES, *frame_shape)).astype(np.uint8)


class ScriptedSource:
    """Frames that follow from their pulse id, with what the script says going wrong.

    Args:
        ids: (run number, pulse ids of one read) in order; a read may be cut by `max_frames`.
        frame_shape: (C, E).
        live: It cannot go back: `open(after=...)` continues with what was not read yet.
        labelled: Blocks carry `label_NCE`, which is the counts.
        pause_s: Between two reads; None comes at the end of the script.
        errors: Raised once, before the read of that number.
        at_end: Called when the script is through, instead of ending; returns whether to go on with empty reads.
    """

    def __init__(
        self,
        ids: Sequence[tuple[int, Sequence[int]]],
        *,
        frame_shape: tuple[int, int] = FRAME_SHAPE,
        live: bool = False,
        labelled: bool = False,
        pause_s: float = 0.0,
        errors: Mapping[int, FilmloopError] | None = None,
        at_end: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stream, self.frame_shape, self.labelled = STREAM, frame_shape, labelled
        self.opened: list[tuple[int, int] | None] = []
        self._script = list(ids)
        self._live, self._pause_s, self._at_end = live, pause_s, at_end
        self._errors = dict(errors or {})
        self._pool = pool(frame_shape)
        self._todo = deque(self._script)
        self._reads = 0

    def open(self, *, after: tuple[int, int] | None) -> None:
        """See the port."""
        self.opened.append(after)
        if self._live:
            return
        self._todo = deque(
            (run, part)
            for run, part in self._script
            if after is None or run > after[0] or (run == after[0] and part[-1] > after[1])
        )
        if after is not None and self._todo and self._todo[0][0] == after[0]:
            run, part = self._todo.popleft()
            self._todo.appendleft((run, [pulse_id for pulse_id in part if pulse_id > after[1]]))

    def read(self, max_frames: int, timeout_s: float = 0.2) -> FrameBlock | None:
        """See the port."""
        self._reads += 1
        if error := self._errors.pop(self._reads, None):
            raise error
        if self._pause_s:
            time.sleep(self._pause_s)
        if not self._todo:
            if not self._at_end():
                return None
            time.sleep(0.005)
            return self._block(0, np.zeros(0, np.uint64))
        run, part = self._todo.popleft()
        if len(part) > max_frames:
            self._todo.appendleft((run, part[max_frames:]))
        return self._block(run, np.asarray(part[:max_frames], np.uint64))

    def close(self) -> None:
        """See the port."""

    def _block(self, run: int, ids: npt.NDArray[np.uint64]) -> FrameBlock:
        counts_NCE = self._pool[(ids % POOL_FRAMES).astype(np.intp)]
        return FrameBlock(
            run_number=run,
            pulse_id_N=ids,
            counts_NCE=counts_NCE,
            flags_N=np.zeros(len(ids), np.uint8),
            label_NCE=counts_NCE.astype(np.float32) if self.labelled else None,
        )


def blocks_of(frames: int, *, size: int = 32, run: int = 1, first: int = 0) -> list[tuple[int, range]]:
    """A script of `frames` consecutive pulse ids in reads of `size`."""
    return [(run, range(start, min(start + size, first + frames))) for start in range(first, first + frames, size)]


def small_site(**sections: Mapping[str, Any]) -> SiteConfig:
    """A site of 4 x 16 frames with short shards and quick looks; keyword arguments add to its sections."""
    values: dict[str, dict[str, Any]] = {
        "frame": {"channels": FRAME_SHAPE[0], "energy_bins": FRAME_SHAPE[1]},
        "source": {"kind": "simulator", "rate_hz": 0.0},
        "edge": {
            "runtime": "torch",
            "batch_frames": 32,
            "watch_every_s": 0.02,
            "status_every_s": 0.05,
            "quality_every": 4,
        },
        "staging": {"frames_per_shard": 256, "frames_per_chunk": 64, "seal_after_s": 60.0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_site(values)


def staged(home: Home) -> tuple[list[SealedShard], dict[str, npt.NDArray[Any]]]:
    """Every sealed shard, checked by its hashes, and their frames put together: run, pulse_id, version, phase, counts."""
    shards = sealed_shards(home.stage, STREAM)
    readers = [ShardReader(shard.manifest_path, check="hashes") for shard in shards]
    columns: dict[str, list[npt.NDArray[Any]]] = {
        "run": [np.full(shard.manifest.frames, shard.manifest.run_number) for shard in shards],
        "pulse_id": [reader.pulse_id_N for reader in readers],
        "version": [reader.version_N for reader in readers],
        "phase": [reader.phase_N for reader in readers],
        "counts": [reader.counts() for reader in readers],
    }
    return shards, {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
