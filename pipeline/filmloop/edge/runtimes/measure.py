"""How fast a runtime is on this machine, by itself.

Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import numpy.typing as npt

from filmloop.ports.runtime import InferenceRuntime, Pending


def frames_per_s(
    runtime: InferenceRuntime,
    counts_NCE: npt.NDArray[np.uint8],
    seconds: float,
    *,
    dense: bool = False,
    batch_frames: int = 0,
) -> float:
    """Frames a second with as many batches under way as the runtime takes.

    Args:
        runtime: What to measure.
        counts_NCE: At least one full batch; batches are cut from it in turn.
        seconds: For so long, and at least two batches.
        dense: Ask for rates, not for keys alone.
        batch_frames: Of each batch; 0: the runtime's own.
    """
    batch_frames = batch_frames or runtime.batch_frames
    starts = range(0, len(counts_NCE) - batch_frames + 1, batch_frames)
    under_way: deque[Pending] = deque()
    begun = done = 0
    begun_s = time.perf_counter()
    while done < 2 * batch_frames or time.perf_counter() - begun_s < seconds:
        if len(under_way) >= runtime.lanes:
            under_way.popleft().result()
            done += batch_frames
        start = starts[begun % len(starts)]
        under_way.append(runtime.start(counts_NCE[start : start + batch_frames], dense=dense))
        begun += 1
    done += batch_frames * len(under_way)
    while under_way:
        under_way.popleft().result()
    return done / (time.perf_counter() - begun_s)


def batch_s(runtime: InferenceRuntime, counts_NCE: npt.NDArray[np.uint8], *, repeats: int = 3) -> float:
    """Seconds from start to result of one full batch with nothing else under way: the shortest of some."""
    took_s = []
    for _ in range(repeats):
        begun_s = time.perf_counter()
        runtime.start(counts_NCE[: runtime.batch_frames]).result()
        took_s.append(time.perf_counter() - begun_s)
    return min(took_s)
