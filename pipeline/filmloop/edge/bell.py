"""A wake-up call between stages: an event counter of the kernel, known to every process that inherits its descriptor."""

from __future__ import annotations

import os
import select


class Bell:
    """Rung by whoever has news, waited for by one stage; a ring that nobody waited for is not lost.

    Args:
        fd: An eventfd; `Bell.new()` makes one.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @classmethod
    def new(cls) -> Bell:
        """A new bell, not inheritable until a process is given it."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ring(self) -> None:
        """Wake the one who waits, or the next one who will."""
        os.eventfd_write(self.fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it rings or the time is over; says whether it rang."""
        # poll() takes whole milliseconds: a wait of 0.4 ms is one of 1 ms, never a busy loop.
        if not self._poll.poll(max(1, round(timeout_s * 1e3))):
            return False
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Forget the descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
