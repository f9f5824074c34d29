"""What a stage runs in: a thread of this process, or a process of its own that can be killed and started anew."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from filmloop.core import errors
from filmloop.core.errors import FilmloopError
from filmloop.edge.gentle import let_give_way
from filmloop.edge.ring import PLACES, SEATS, STANDBY, FrameRing, RingLayout
from filmloop.edge.stages.base import Stage

_log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""They are for the service, which tells its stages when to stop, in order."""

_END_S = 2.0
"""Longest that the end of a killed process is waited for."""

_ENVIRON = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""NumPy's products are small here; a second thread would spin for the next one, 2 % of a core beside the network's. And every
version is loaded in a thread of its own: glibc would give each one an arena of its own, up to eight a core, and hardly give
anything back (half as much memory again after 40 swaps on two cores)."""


class Host(Protocol):
    """One stage at work.

    Attributes:
        place: Where it sits at the ring.
        can_restart: Whether `start` may be called again after the stage has died.
        pid: Its process, if that is its own, else 0.
    """

    place: str
    can_restart: bool

    @property
    def pid(self) -> int:
        """See above."""

    def start(self) -> None:
        """Begin; the stage takes up what a former life left.

        Raises:
            OSError: it cannot be started for the first time. Later that is a life that ended before it began.
        """

    def is_alive(self) -> bool:
        """Whether it works."""

    def kill(self) -> None:
        """End it by force, if that is possible; returns when it has ended, as far as the kernel lets it."""

    def failure(self) -> BaseException | None:
        """Why the edge cannot go on; None after a clean end, or if it is worth another start."""

    def how_it_ended(self) -> str:
        """In words, for the log."""


class ThreadHost:
    """A stage in a thread: it cannot be killed, and shares the interpreter with the others.

    Args:
        place: Where it sits at the ring.
        make: Makes it, in its thread.
    """

    can_restart, pid = False, 0

    def __init__(self, place: str, make: Callable[[], Stage]) -> None:
        self.place, self._make = place, make
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """See `Host`."""
        self._thread = threading.Thread(target=self._run, name=self.place, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """See `Host`."""
        return self._thread is not None and self._thread.is_alive()

    def kill(self) -> None:
        """A thread ends by itself or with its process."""

    def failure(self) -> BaseException | None:
        """What the stage raised."""
        return self._failure

    def how_it_ended(self) -> str:
        """See `Host`."""
        return repr(self._failure)

    def _run(self) -> None:
        try:
            self._make().main()
        except BaseException as exc:
            self._failure = exc


class ProcessHost:
    """A stage in a process of its own; it dies with this one.

    Args:
        place: Where it sits at the ring.
        ring: The ring, which it inherits.
        argv: The command that runs a stage; place and descriptors are added.
    """

    can_restart = True

    def __init__(self, place: str, ring: FrameRing, argv: Sequence[str]) -> None:
        self.place, self._ring, self._argv = place, ring, argv
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._refusal = 0, ""

    def start(self) -> None:
        """See `Host`."""
        ring = self._ring
        self._starts += 1
        self._ring.beats[PLACES.index(self.place)] = 0
        if self.place in SEATS:
            self._ring.ready[SEATS.index(self.place)] = 0
        # A signal to the whole group must not end a stage that still imports: blocked until it ignores them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [*self._argv, self.place, hand_over(ring)],
                stdin=subprocess.DEVNULL,
                env=_ENVIRON | os.environ,
                pass_fds=(ring.fd, *(bell.fd for bell in ring.bells.values())),
            )
        except OSError as exc:
            if self._starts == 1:
                raise
            # No memory, too many processes: what was started before can be again, once there is room.
            self._process, self._refusal = None, f"could not be started: {exc}"
        else:
            if ring.role(self.place) == STANDBY:
                let_give_way(self._process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    @property
    def pid(self) -> int:
        """Its process id; 0 while it has none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def is_alive(self) -> bool:
        """See `Host`."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """See `Host`."""
        if self._process is not None:
            self._process.kill()
            # One that the kernel holds, by a disk that hangs, must not keep the others from being looked after.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)

    def failure(self) -> BaseException | None:
        """The error of ours that it left on its board; a signal, a bug or a passing trouble is no reason to give up.

        A stage that never came up is another matter: that is for the operator to see at once.
        """
        told = self._ring.boards[self.place].read().get("fatal")
        error = error_of(told) if told else None
        came_up = self._ring.beats[PLACES.index(self.place)] or self._starts > 1
        return None if error is not None and error.retryable and came_up else error

    def how_it_ended(self) -> str:
        """See `Host`."""
        if self._process is None:
            return self._refusal
        code = self._process.poll()
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def hand_over(ring: FrameRing) -> str:
    """All that a child needs to map the ring, in one word of its command line."""
    layout = ring.layout
    words = {
        "fd": ring.fd, "bells": {place: bell.fd for place, bell in ring.bells.items()},
        "frames": layout.frames, "frame_shape": layout.frame_shape, "labelled": layout.labelled, "parent": os.getpid(),
    }  # fmt: skip
    return json.dumps(words, separators=(",", ":"))


def take_over(text: str) -> FrameRing:
    """The ring of the process that started this one; this process ends with that one, however that ends."""
    from filmloop.edge.bell import Bell

    words = json.loads(text)
    _die_with(words["parent"])
    layout = RingLayout(frames=words["frames"], frame_shape=tuple(words["frame_shape"]), labelled=words["labelled"])
    return FrameRing(layout, words["fd"], {place: Bell(fd) for place, fd in words["bells"].items()})


def error_of(told: dict[str, object]) -> FilmloopError:
    """The error that `FilmloopError.as_dict` told of."""
    kind: type[FilmloopError] = getattr(errors, str(told.get("error")), FilmloopError)
    ids = told.get("ids")
    return kind(
        str(told.get("message", "")),
        hint=str(told.get("hint", "")),
        ids={str(name): str(value) for name, value in ids.items()} if isinstance(ids, dict) else {},
    )


def _die_with(parent: int) -> None:
    """SIGKILL from the kernel when the parent is gone (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
