"""What the stages have in common: a place at the ring, a heartbeat, a page of news."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from filmloop.edge.news import News
from filmloop.edge.ring import PLACES, FrameRing

BEAT_S = 0.1
"""A stage that has nothing to do looks up this often."""


class Stage(ABC):
    """One stage. `run` returns when its work is done for good; it may be run anew after a kill at any point.

    Args:
        place: One of `PLACES`.
        ring: Where its frames come from and go to.
    """

    def __init__(self, place: str, ring: FrameRing) -> None:
        self.place, self.ring = place, ring
        self.news = News(ring.boards[place])
        self._number = PLACES.index(place)

    @abstractmethod
    def run(self) -> None:
        """Work until the data have ended or the edge is told to stop.

        Raises:
            FilmloopError: the edge cannot go on.
        """

    def main(self) -> None:
        """Run, and leave the last news on the board."""
        try:
            self.run()
        finally:
            self.news.publish(at_once=True)

    def beat(self) -> None:
        """Show life, and publish the news."""
        self.ring.beats[self._number] = time.monotonic_ns()
        self.news.publish()

    def wait(self, timeout_s: float = BEAT_S) -> None:
        """Until somebody rings this stage's bell, or the time is over."""
        self.ring.bells[self.place].wait(timeout_s)
        self.beat()

    @property
    def stopping(self) -> bool:
        """Whether the edge was told to stop."""
        return self.ring.control.get("stop") != 0

    @property
    def hurried(self) -> bool:
        """Whether a stop is overdue."""
        return self.ring.control.get("hurry") != 0
