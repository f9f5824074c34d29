"""How long frames take from their arrival to their result: counts by time, on a logarithmic scale."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

_PER_OCTAVE = 16
_FIRST_NS, _OCTAVES = 1024, 27
BUCKETS = _PER_OCTAVE * _OCTAVES + 1
"""From 1 us to 137 s in steps of 4 %; the last one takes what is beyond."""

_WINDOWS = 25


class Latency:
    """Every batch, by its oldest frame; the newest five seconds can be told from the rest.

    Attributes:
        counts: Batches in each bucket since the beginning.
    """

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self._past: deque[list[int]]
        self.begin()

    def add(self, nanoseconds: int) -> None:
        """One batch took this long."""
        self.counts[_bucket(nanoseconds)] += 1

    def tick(self) -> None:
        """Remember where the counts stand; called a few times a second."""
        self._past.append(list(self.counts))

    def begin(self) -> None:
        """From here on only what is new is told; `counts` go on."""
        self._past = deque([list(self.counts)], maxlen=_WINDOWS)

    def percentiles_ms(self) -> tuple[float, float, float]:
        """Median, 99th and 99.9th percentile since the oldest remembered tick; zeros without a batch."""
        return percentiles_ms([now - then for now, then in zip(self.counts, self._past[0], strict=True)])


def percentiles_ms(counts: Sequence[int]) -> tuple[float, float, float]:
    """Median, 99th and 99.9th percentile of counts by bucket, upper edges; zeros without any."""
    total = sum(counts)
    found = []
    for share in (0.5, 0.99, 0.999):
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if total and seen >= share * total:
                found.append(round(_FIRST_NS * 2 ** ((bucket + 1) / _PER_OCTAVE) / 1e6, 3))
                break
        else:
            found.append(0.0)
    return found[0], found[1], found[2]


def counts_between(now: Mapping[str, int], then: Mapping[str, int]) -> list[int]:
    """Batches in each bucket that came between two statuses."""
    return [now.get(str(bucket), 0) - then.get(str(bucket), 0) for bucket in range(BUCKETS)]


def _bucket(nanoseconds: int) -> int:
    if nanoseconds < _FIRST_NS:
        return 0
    return min(int(math.log2(nanoseconds / _FIRST_NS) * _PER_OCTAVE), BUCKETS - 1)
