"""Work that gives way to everything else on this machine.

A priority is a thread's, on Linux, and whoever lowers his own may not raise it again unless he is privileged: root, or a
service with `LimitNICE=20`. Such a process steps back as a whole, and comes back when it is needed.

Others do what is to be done in a thread that is not needed afterwards. But a runtime starts threads when it loads, keeps
them for the next model once this one is closed, and they have the priority of whoever started them: so such a process
loads its first model like anything else, and those after it gently.

What is measured is measured at the usual priority: it tells how fast frames will be.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")

_LOWER_BY = 10
"""Of `nice`: a tenth of what others get where all cores are busy. With 19, a swap on a busy machine would not end."""
_MOST_MISBORN = 2


def let_give_way(pid: int) -> None:
    """A process that was started just now gives way from the beginning, if it may come back: it imports for a second."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_return_to(usual):
        _set([pid], usual + _LOWER_BY)


class Pace(Protocol):
    """How somebody does what frames need not wait for."""

    def gently(self, work: Callable[[], _Made]) -> _Made:
        """What `work` makes or raises; it may be called a second time."""

    def plainly(self, work: Callable[[], _Made]) -> _Made:
        """The same at the usual priority."""


class AtOnce:
    """The plain way. Beside frames in one process a lower priority would do harm: whoever holds Python's lock must not wait."""

    def gently(self, work: Callable[[], _Made]) -> _Made:
        """See `Pace`."""
        return work()

    def plainly(self, work: Callable[[], _Made]) -> _Made:
        """See `Pace`."""
        return work()


AT_ONCE = AtOnce()


class Gentle:
    """How this process gives way; its usual priority is that of the process which started it.

    Attributes:
        begun: Whether it has loaded a model already.
    """

    def __init__(self) -> None:
        self.begun, self._gives_way = False, False
        self._usual = _priority(os.getppid())
        self._may_return = _may_return_to(self._usual)
        # What runs in threads of a low priority is never served from, and not closed either: others would get those threads.
        self._misborn: list[Any] = []

    def step_back(self) -> None:
        """Every thread of this process gives way, if it may come back."""
        self._gives_way = True
        if self._may_return:
            _set_all(self._usual + _LOWER_BY)

    def come_back(self) -> None:
        """They have the usual priority again."""
        self._gives_way = False
        if self._may_return:
            _set_all(self._usual)

    def plainly(self, work: Callable[[], _Made]) -> _Made:
        """See `Pace`."""
        try:
            if self._may_return:
                _set_all(self._usual)
            made = work()
            self.begun = True
            return made
        finally:
            if self._may_return and self._gives_way:
                _set_all(self._usual + _LOWER_BY)

    def gently(self, work: Callable[[], _Made]) -> _Made:
        """See `Pace`."""
        if self._may_return or not self.begun or len(self._misborn) >= _MOST_MISBORN:
            made = work()
            self.begun = True
            return made
        before = _threads()
        made, own = _in_a_thread(work)
        # The thread that did it may still be there.
        if not any(_priority(each) > self._usual for each in _threads() - before - {own}):
            return made
        _log.info("loaded anew at the usual priority: the runtime has started more threads")
        self._misborn.append(made)
        return work()


def _may_return_to(usual: int) -> bool:
    """Whether a thread that lowered its priority may have this one again: tried with one that is not needed."""
    return _in_a_thread(lambda: _set([threading.get_native_id()], usual))[0]


def _in_a_thread(work: Callable[[], _Made]) -> tuple[_Made, int]:
    """`work` in a thread of its own with a lower priority, and which: this one could not come back from it."""
    outcome: Future[tuple[_Made, int]] = Future()

    def run() -> None:
        me = threading.get_native_id()
        _set([me], _priority(me) + _LOWER_BY)
        try:
            outcome.set_result((work(), me))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, name="gentle", daemon=True).start()
    return outcome.result()


def _set(threads: Iterable[int], priority: int) -> bool:
    """Give them this priority; whether that is allowed."""
    for each in threads:
        try:
            os.setpriority(os.PRIO_PROCESS, each, priority)
        except ProcessLookupError:
            continue
        except PermissionError:
            return False
    return True


def _set_all(priority: int) -> None:
    """All threads of this process, those too that others start meanwhile."""
    done: set[int] = set()
    while new := _threads() - done:
        _set(new, priority)
        done |= new


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _priority(thread: int) -> int:
    """Of a thread; the highest of all if there is none any more."""
    with suppress(ProcessLookupError):
        return os.getpriority(os.PRIO_PROCESS, thread)
    return -20
