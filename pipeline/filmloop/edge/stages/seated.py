"""Inference in one of two seats: while one serves, the other prepares the next version, and then relieves it.

What a new version takes, half a second of a core, happens in another process and at a lower priority. With it beside
the frames, batches waited for Python's lock and for a core.

    serves:     infers; once the other seat is ready, finishes what is under way and leaves
    stands by:  closes what it served, looks for the next version, proves it, says that it is ready, waits for its turn

`seat` among inference's counts says whose turn it is. It moves with them in one step, so that a kill at any moment leaves
exactly one seat that serves, be it in its next life.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from filmloop.config.schema import SiteConfig
from filmloop.core.errors import VerificationError
from filmloop.edge.drift import DriftMonitor
from filmloop.edge.gain import behind
from filmloop.edge.gentle import Gentle
from filmloop.edge.models import ModelStore, Proven
from filmloop.edge.ring import PLACES, SEATS, FrameRing
from filmloop.edge.stages.inference import InferenceStage
from filmloop.edge.swap import Key
from filmloop.ports.registry import Registry

_log = logging.getLogger(__name__)

_ASK_EVERY_S = 1.0
_ALIVE_S = 2.0
"""Whoever is ready and has shown no life for so long does not get the turn. On a busy machine it is silent for 1.5 s at times."""


class SeatedInference(InferenceStage):
    """Inference that serves and stands by in turn.

    Args:
        place: Its seat, one of `SEATS`.
        ring: The ring.
        config: The site.
        store: Where bundles are kept and proven.
        registry: Makes a registry client, in the watcher's thread.
        drift: Looks at the scored frames; None: nobody looks.
        asked: Whether somebody asked for a look at the registry since the last call.
    """

    def __init__(
        self,
        place: str,
        ring: FrameRing,
        config: SiteConfig,
        *,
        store: ModelStore,
        registry: Callable[[], Registry],
        drift: DriftMonitor | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(ring, config, store=store, registry=registry, drift=drift, asked=asked, place=place)
        self._seat = SEATS.index(place)
        self._other = 1 - self._seat
        self._gentle = Gentle()
        self._ask_at_s = 0.0

    def run(self) -> None:
        """Work until the source has ended and all its frames are inferred, by whomever.

        Raises:
            ConfigError: the runtime that the site names is not to be had here.
        """
        try:
            if self._has_turn():
                if self._is_relieved():
                    self._leave()  # a new life, and the other one has prepared what should serve
                else:
                    self._begin(None)
            while self._has_turn() or self._stand_by():
                if self._work():
                    self._end()
                    self.ring.bells[SEATS[self._other]].ring()
                    return
                self._leave()
        finally:
            if self._drift is not None:
                self._drift.finish()

    def _has_turn(self) -> bool:
        return self.ring.inference.get("seat") == self._seat

    def _is_relieved(self) -> bool:
        beat_ns = int(self.ring.beats[PLACES.index(SEATS[self._other])])
        return bool(self.ring.ready[self._other]) and time.monotonic_ns() - beat_ns < 1e9 * _ALIVE_S

    def _leave(self) -> None:
        """The other seat goes on behind the last frame of this one."""
        ring, left, self._runtime = self.ring, self._runtime, None
        self._tell(at_once=True)
        self.news.publish(at_once=True)
        ring.inference.write({**self._totals, "seat": self._other})
        ring.bells[SEATS[self._other]].ring()
        self._gentle.step_back()
        if self._drift is not None:
            self._drift.leave()
        if left is not None:
            behind(left).close()

    def _stand_by(self) -> bool:
        """Until it is this seat's turn, with what serves next; False once everything is inferred."""
        self._gentle.step_back()
        self._offer.live = self._told_live()
        watcher, next_one = self._watch(self._gentle), None
        try:
            while not self._has_turn():
                if self.ring.inference.get("ended"):
                    return False
                next_one = next_one or self._prepared()
                self._see_what_serves()
                self.wait()
        finally:
            if watcher is not None:
                watcher.finish()
        self._begin(next_one)
        return True

    def _begin(self, proven: Proven | None) -> None:
        """Serve from here on, what was prepared or else what was live last."""
        self._totals = self.ring.inference.read()
        self._started = self._totals["done"]
        self._quality = self._new_quality()
        self._latency.begin()
        self.ring.ready[self._seat] = 0
        if proven is None:
            self._gentle.come_back()
            self._gentle.begun |= self._load_remembered()
            self._settle()
            return
        self._runtime = proven.runtime
        self._offer.accept(proven)
        self.news.more("swaps")
        self._say_live(proven, relieves=True)
        self.news.publish(at_once=True)
        _log.info("version %s is live on %s", proven.runtime.version, proven.runtime.name)

    def _prepared(self) -> Proven | None:
        """What is ready to serve: a version that was offered just now and serves what it should."""
        offered = self._offer.take()
        if offered is None:
            return None
        try:
            self._check(offered)
        except VerificationError as exc:
            self._refuse(offered, exc)
            return None
        self._settle()
        self._gentle.come_back()
        # All at once, and before it serves: whoever reads this page when the turn has just changed reads of no former time.
        self._tell_version(offered)
        self.news.say(drift=None, input=None, latency_p50_ms=0.0, latency_p99_ms=0.0, latency_p999_ms=0.0)
        self.news.publish(at_once=True)
        self.ring.ready[self._seat] = int(offered.runtime.version)
        self.ring.bells[self.ring.serving].ring()
        return offered

    def _see_what_serves(self) -> None:
        """Now and then: a seat that was started anew may serve another version than before."""
        if time.monotonic() >= self._ask_at_s:
            self._ask_at_s = time.monotonic() + _ASK_EVERY_S
            self._offer.live = self._told_live()

    def _told_live(self) -> Key | None:
        """What the other seat says that it serves."""
        told = self.ring.boards[SEATS[self._other]].read()
        return (told["version"], told["bundle_digest"]) if told.get("version") else None
