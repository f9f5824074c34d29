"""Real senders for tests of live sources: a thread of this process that pushes or publishes until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from filmloop.adapters.sources.pva_serve import NtndServer
from filmloop.adapters.sources.zmq_send import Sender


@contextmanager
def pushing(
    endpoint: str, message: Callable[[int], Sequence[Any]], *, frames: int, bind: bool = True
) -> Iterator[None]:
    """Push `message(first)` for first = 0, `frames`, 2 `frames`, ... as fast as they are taken."""
    sender, stop = Sender(endpoint, bind=bind, queue_messages=2), threading.Event()

    def push() -> None:
        first = 0
        while not stop.is_set():
            if sender.send(message(first), timeout_s=0.05):
                first += frames

    with _thread(push, stop):
        yield
    sender.close(linger_s=0.0)


@contextmanager
def publishing(array: np.ndarray, *, every_s: float) -> Iterator[tuple[str, str]]:
    """Publish `array`, a frame or a stack, with rising pulse ids; yields the channel and its address."""
    server, stop = NtndServer("TEST:Image"), threading.Event()
    frames = 1 if array.ndim == 2 else len(array)

    def publish() -> None:
        first = 0
        while not stop.wait(every_s):
            server.post(array, first)
            first += frames

    with _thread(publish, stop):
        yield "TEST:Image", server.address
    server.close()


@contextmanager
def _thread(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
