"""Watches the champion alias: a new version is fetched, proven and offered while the old one goes on working."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from filmloop.core.documents import VersionInfo
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.log import Limited
from filmloop.edge.gentle import AT_ONCE, Pace
from filmloop.edge.models import ModelStore, Proven
from filmloop.edge.news import News
from filmloop.ports.registry import CHAMPION, Registry
from filmloop.ports.runtime import InferenceRuntime

_log = logging.getLogger(__name__)

# A refused version is looked at again after this long, doubling: a bundle may have been torn on its way.
_REFUSED_FIRST_S, _REFUSED_CAP_S = 30.0, 600.0
_ASKED_EVERY_S = 0.05


Key = tuple[str, str]
"""Of a version: its number and the digest of its bundle."""


class Offer:
    """One place for the next version: the watcher puts it there, the inference loop takes it between two batches.

    Args:
        wake: Called when there is one.

    Attributes:
        live: What serves; the inference loop says so.
        open: What was put there and is neither taken on nor refused.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._lock, self._wake = threading.Lock(), wake
        self.live: Key | None = None
        self.open: Key | None = None
        self._proven: Proven | None = None
        self._refused: Key | None = None
        self._retired: deque[InferenceRuntime] = deque()

    def put(self, proven: Proven) -> None:
        """Offer a version; one that was not taken yet is forgotten."""
        with self._lock:
            former, self._proven = self._proven, proven
            self.open = _key(proven)
        self._wake()
        if former is not None:
            former.runtime.close()

    def take(self) -> Proven | None:
        """The offered version, once."""
        if self._proven is None:
            return None
        with self._lock:
            proven, self._proven = self._proven, None
        return proven

    def accept(self, proven: Proven) -> None:
        """It was taken, and serves."""
        self.live = _key(proven)
        self._settle(proven)

    def refuse(self, proven: Proven) -> None:
        """It was taken and did not serve what it should; it is closed."""
        self._refused = _key(proven)
        self._settle(proven)
        proven.runtime.close()

    def _settle(self, proven: Proven) -> None:
        with self._lock:
            if self.open == _key(proven):
                self.open = None

    def retire(self, runtime: InferenceRuntime) -> None:
        """It serves no more. Taking it down takes tens of milliseconds, which are not the frames'."""
        self._retired.append(runtime)

    def close_retired(self) -> None:
        """Close what was retired."""
        while self._retired:
            self._retired.popleft().close()

    def take_refused(self) -> Key | None:
        """(version, bundle digest) of what was refused since the last call."""
        refused, self._refused = self._refused, None
        return refused


def _key(proven: Proven) -> Key:
    return proven.runtime.version, proven.digest


class ModelWatcher(threading.Thread):
    """Polls the registry. Whatever goes wrong there, the live version stays.

    Args:
        store: Fetches, proves and keeps bundles.
        registry: Makes the registry client; called again after every failure.
        offer: Where a proven runtime goes, and who says what serves: that is remembered.
        news: Where problems and refusals are told.
        every_s: Pause between two looks.
        asked: Whether somebody asked for a look since the last call: then the pause ends.
        pace: How a version is loaded.
    """

    def __init__(
        self,
        *,
        store: ModelStore,
        registry: Callable[[], Registry],
        offer: Offer,
        news: News,
        every_s: float,
        asked: Callable[[], bool] = lambda: False,
        pace: Pace = AT_ONCE,
    ) -> None:
        super().__init__(name="model-watcher", daemon=True)
        self._pace = pace
        self._store, self._connect, self._offer, self._asked = store, registry, offer, asked
        self._news, self._every_s = news, every_s
        self._registry: Registry | None = None
        self._remembered: Key | None = None
        self._refused: Key | None = None
        self._refused_pause_s, self._refused_until_s = 0.0, 0.0
        self._done = threading.Event()
        self._trouble, self._disk_trouble = Limited(_log), Limited(_log)

    def run(self) -> None:
        """The thread: until `finish`."""
        while not self._done.is_set():
            try:
                self.look()
            except Exception as exc:
                # Vendor code fails in ways that no list covers, and a thread that ended would never swap again.
                hint = exc.hint if isinstance(exc, FilmloopError) else ""
                self._news.problem(f"registry: {exc}")
                self._trouble.failed("the registry is away, %s: %s %s", self._what_stays(), exc, hint)
            else:
                self._trouble.worked("the registry answers again")
            self._pause()

    def _what_stays(self) -> str:
        live = self._offer.live
        if live is None:
            return "and no version is live yet; frames are staged all the same"
        return f"version {live[0]} stays live"

    def _pause(self) -> None:
        """Until the next look is due or asked for. While an offer is open nothing else is prepared: who takes it may serve by now."""
        end_s, was_open = time.monotonic() + self._every_s, False
        while not self._done.is_set():
            left_s = _ASKED_EVERY_S
            if self._offer.open is not None:
                was_open = True
            elif was_open or self._asked() or (left_s := end_s - time.monotonic()) <= 0:
                return
            self._done.wait(min(left_s, _ASKED_EVERY_S))

    def finish(self) -> None:
        """Look no more. A download under way is left behind: it lies in `.incoming-*`, where nobody looks."""
        self._done.set()

    def look(self) -> None:
        """Look at the alias once; offer what is new and proven.

        Raises:
            TransientError: the registry or the disk is away.
        """
        self._offer.close_retired()
        if (refused := self._offer.take_refused()) is not None:
            self._pause_for(refused)
            self._remembered = None  # its bundle is one too many
        self._remember()
        try:
            self._look()
        except Exception:
            # A server of our own may come back on another port: the next look finds it anew.
            self._registry = None
            raise

    def _look(self) -> None:
        if self._registry is None:
            self._registry = self._connect()
        info = self._registry.get(CHAMPION)
        if info is None:
            return
        key = (info.version, info.bundle_digest)
        if key == (self._offer.open or self._offer.live):
            return
        if key == self._refused and time.monotonic() < self._refused_until_s:
            return
        # If it takes this process with it, the log tells which one it was.
        _log.info("preparing version %s", info.version)
        try:
            proven = self._store.fetch(self._registry, info, self._pace)
        except TransientError:
            raise
        except DataError as exc:
            self._refuse(key, info, exc)
            return
        try:
            # It took seconds: somebody may have rolled it back meanwhile.
            still = self._registry.get(CHAMPION)
        except BaseException:
            proven.runtime.close()
            raise
        if self._done.is_set() or still is None or (still.version, still.bundle_digest) != key:
            proven.runtime.close()
            return
        self._offer.put(proven)

    def _remember(self) -> None:
        """What is live need not be on the disk at once: as often as it takes, at every look."""
        live = self._offer.live
        if live is None or live == self._remembered or self._done.is_set():
            return
        try:
            self._store.remember(*live)
        except FilmloopError as exc:
            self._news.problem(f"version {live[0]} is live, a restart would not know: {exc.message}")
            self._disk_trouble.failed("the live version cannot be remembered: %s %s", exc.message, exc.hint)
        else:
            self._remembered = live
            self._disk_trouble.worked("the live version is remembered")

    def _refuse(self, key: Key, info: VersionInfo, exc: DataError) -> None:
        self._pause_for(key)
        self._news.more("swaps_refused")
        self._news.problem(f"version {info.version} refused: {exc.message}")
        _log.error("version %s refused, %s: %s %s", info.version, self._what_stays(), exc, exc.hint)

    def _pause_for(self, key: Key) -> None:
        again = key == self._refused
        self._refused_pause_s = min(self._refused_pause_s * 2, _REFUSED_CAP_S) if again else _REFUSED_FIRST_S
        self._refused, self._refused_until_s = key, time.monotonic() + self._refused_pause_s
