"""SIGTERM and Ctrl-C: as an event that a program waits for, and an interrupt that is not lost.

Python runs a handler in the main thread between any two of its instructions, also while it holds the lock inside the
very event that it is waiting for. `Event.set` in the handler would then wait for that lock for ever, and the program
would neither go on nor stop. So the handler takes no lock: it writes a byte, and a thread does the rest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 0.05


@contextmanager
def stopped_by_signals(
    stop: threading.Event, tell: Callable[[signal.Signals], None] = lambda number: None
) -> Iterator[None]:
    """Inside the block the first SIGTERM or SIGINT sets `stop`; a second one does what it did before.

    For the main thread.

    Args:
        stop: What the program looks at.
        tell: Called with the signal, in another thread, before `stop` is set.
    """
    wakes, waker = os.pipe()
    former: dict[signal.Signals, object] = {}

    def put_back() -> None:
        for name, handler in former.items():
            signal.signal(name, handler)  # type: ignore[arg-type]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        put_back()
        os.write(waker, bytes([number]))

    def wait() -> None:
        for number in os.read(wakes, 1):  # none if the block ended first
            tell(signal.Signals(number))
            stop.set()

    thread = threading.Thread(target=wait, name="signal-waiter", daemon=True)
    thread.start()
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            former[name] = signal.signal(name, on_signal)
        yield
    finally:
        put_back()
        os.close(waker)
        thread.join()
        os.close(wakes)


def repeat_lost_interrupts() -> None:
    """Send Ctrl-C again where Python has lost it, for the rest of this process.

    An exception in a destructor, or in the callback of a weak reference, is printed and forgotten, and so is the
    `KeyboardInterrupt` that a signal happens to raise there. While modules are imported there is one such callback for each.
    """
    told = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            told(unraisable)
            return
        # Not here, where it would be lost as well.
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
