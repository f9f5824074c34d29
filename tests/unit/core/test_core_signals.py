"""Signals that set an event, at the worst moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from filmloop.core.signals import stopped_by_signals

# Event.wait and Event.is_set leave this lock held for some instructions: here a signal comes in them, for sure.
INSIDE_THE_EVENT = """
import os, signal, threading
from filmloop.core.signals import stopped_by_signals
stop, told = threading.Event(), []
with stopped_by_signals(stop, told.append):
    with stop._cond:
        os.kill(os.getpid(), signal.SIGTERM)
    print(stop.wait(20.0), [number.name for number in told])
"""


def test_a_signal_that_comes_inside_the_event_stops_the_program_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", INSIDE_THE_EVENT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True ['SIGTERM']\n", 0), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_told_and_sets_the_event_and_the_second_does_what_it_did(number: signal.Signals) -> None:
    before: list[int] = []
    kept = {
        each: signal.signal(each, lambda came, frame: before.append(came)) for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        stop, told = threading.Event(), []
        with stopped_by_signals(stop, told.append):
            os.kill(os.getpid(), number)
            assert stop.wait(20.0)
            assert (told, before) == ([number], [])
            os.kill(os.getpid(), number)
            assert before == [number]
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


def test_a_block_that_no_signal_ends_leaves_handlers_threads_and_descriptors_as_they_were() -> None:
    def state() -> tuple[object, object, int, int]:
        handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        return *handlers, threading.active_count(), len(os.listdir("/proc/self/fd"))

    before, stop = state(), threading.Event()
    with pytest.raises(ValueError, match="inside"), stopped_by_signals(stop):
        raise ValueError("inside")
    assert state() == before
    assert not stop.is_set()


_LOST = """
import os, signal, sys, time
from filmloop.core.signals import repeat_lost_interrupts
if sys.argv[1] == "repeat":
    repeat_lost_interrupts()

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

try:
    Dying()
    print("lost", flush=True)
    time.sleep(3)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(("how", "told"), [("repeat", ["lost", "interrupted"]), ("leave", ["lost"])])
def test_an_interrupt_that_python_forgets_in_a_destructor_comes_again(how: str, told: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _LOST, how], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == told, done.stderr
    assert ("Exception ignored" in done.stderr) is (how == "leave")
