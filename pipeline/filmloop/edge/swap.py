"""Watches the champion alias: a new version is fetched, proven and offered while the old one goes on working."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from filmloop.core.documents import VersionInfo
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.log import Limited
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
Load = Callable[[Callable[[], Proven]], Proven]
"""Calls what loads a version, in its own way."""


def at_once(work: Callable[[], Proven]) -> Proven:
    """The plain way to load."""
    return work()


class Offer:
    """One place for the next version: the watcher puts it there, the inference loop takes it between two batches.

    Args:
        wake: Called when there is one.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._lock, self._wake = threading.Lock(), wake
        self._proven: Proven | None = None
        self._refused: Key | None = None
        self._retired: deque[InferenceRuntime] = deque()

    def put(self, proven: Proven) -> bool:
        """Offer a version; says whether there was one that was not taken yet, which is forgotten."""
        with self._lock:
            former, self._proven = self._proven, proven
        self._wake()
        if former is not None:
            former.runtime.close()
        return former is not None

    def take(self) -> Proven | None:
        """The offered version, once."""
        if self._proven is None:
            return None
        with self._lock:
            proven, self._proven = self._proven, None
        return proven

    def refuse(self, proven: Proven) -> None:
        """It was taken and did not serve what it should; it is closed."""
        self._refused = (proven.runtime.version, proven.digest)
        proven.runtime.close()

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


class ModelWatcher(threading.Thread):
    """Polls the registry. Whatever goes wrong there, the live version stays.

    Args:
        store: Fetches, proves and keeps bundles.
        registry: Makes the registry client; called again after every failure.
        offer: Where a proven runtime goes.
        news: Where problems and refusals are told.
        every_s: Pause between two looks.
        asked: Whether somebody asked for a look since the last call: then the pause ends.
        live: (version, bundle digest) that serves.
        load: Calls what loads a version. Beside frames in the same process a lower priority would do harm: whoever holds
            Python's lock must not wait for the others.
    """

    def __init__(
        self,
        *,
        store: ModelStore,
        registry: Callable[[], Registry],
        offer: Offer,
        news: News,
        every_s: float,
        live: Key | None,
        asked: Callable[[], bool] = lambda: False,
        load: Load = at_once,
    ) -> None:
        super().__init__(name="model-watcher", daemon=True)
        self._load = load
        self._store, self._connect, self._offer, self._asked = store, registry, offer, asked
        self._news, self._every_s, self._current = news, every_s, live
        self._former: Key | None = None
        self._registry: Registry | None = None
        self._to_remember: Key | None = None
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
        if self._current is None:
            return "and no version is live yet; frames are staged all the same"
        return f"version {self._current[0]} stays live"

    def _pause(self) -> None:
        end_s = time.monotonic() + self._every_s
        while (left_s := end_s - time.monotonic()) > 0 and not self._asked():
            if self._done.wait(min(left_s, _ASKED_EVERY_S)):
                return

    def finish(self) -> None:
        """Look no more. A download under way is left behind: it lies in `.incoming-*`, where nobody looks."""
        self._done.set()

    def serves(self, live: Key | None) -> None:
        """Another version serves than before, not one that was offered from here."""
        self._current = live

    def look(self) -> None:
        """Look at the alias once; offer what is new and proven.

        Raises:
            TransientError: the registry or the disk is away.
        """
        self._offer.close_retired()
        self._take_back()
        self._remember()
        try:
            self._look()
        except Exception:
            # A server of our own may come back on another port: the next look finds it anew.
            self._registry = None
            raise
        self._remember()

    def _look(self) -> None:
        if self._registry is None:
            self._registry = self._connect()
        info = self._registry.get(CHAMPION)
        if info is None:
            return
        key = (info.version, info.bundle_digest)
        if key == self._current or (key == self._refused and time.monotonic() < self._refused_until_s):
            return
        try:
            proven = self._load(partial(self._store.fetch, self._registry, info))
        except TransientError:
            raise
        except DataError as exc:
            self._refuse(key, info, exc)
            return
        if self._done.is_set():
            proven.runtime.close()
            return
        if not self._offer.put(proven):
            self._former = self._current
        self._current, self._to_remember = key, key

    def _take_back(self) -> None:
        """What was refused at the swap is not live: the version before it still is, and is to be remembered."""
        refused = self._offer.take_refused()
        if refused is not None and refused == self._current:
            self._current = self._to_remember = self._former
            self._pause_for(refused)

    def _remember(self) -> None:
        """What is live need not be on the disk at once: as often as it takes, at every look."""
        if self._to_remember is None:
            return
        try:
            self._store.remember(*self._to_remember)
        except TransientError as exc:
            self._news.problem(f"version {self._to_remember[0]} is live, a restart would not know: {exc.message}")
            self._disk_trouble.failed("the live version cannot be remembered: %s %s", exc.message, exc.hint)
        else:
            self._to_remember = None
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
