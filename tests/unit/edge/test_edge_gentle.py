"""Giving way with and without the right to come back, in a process of its own: priorities are real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from filmloop.edge import gentle

_BEGIN = """
import os, threading, time
from filmloop.edge.gentle import Gentle

def nice(thread=0):
    return os.getpriority(os.PRIO_PROCESS, thread)

usual, gentle = nice(), Gentle()

class Pool:
    "Starts a thread when it is made, as a runtime does, or takes one that is left."
    left, made, closed = [], 0, 0
    def __init__(self):
        time.sleep(0.02)
        Pool.made += 1
        self.thread = Pool.left.pop() if Pool.left else self.begin()
        self.made_at = nice(threading.get_native_id()) - usual
        self.runs_at = nice(self.thread) - usual
    def begin(self):
        up = threading.Event()
        thread = threading.Thread(target=lambda: (up.set(), threading.Event().wait()), daemon=True)
        thread.start()
        up.wait()
        return thread.native_id
    def close(self):
        Pool.left.append(self.thread)
"""


def run(code, *, privileged):
    drop = ""
    if not privileged and os.geteuid() == 0:
        drop = "import os, resource\nresource.setrlimit(resource.RLIMIT_NICE, (0, 0))\nos.setuid(65534)\n"
    # What is imported lies where nobody else may read: before the rights are given up.
    text = "import filmloop.edge.gentle\n" + drop + _BEGIN + code
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)


MAY_RETURN = gentle._may_return_to(os.getpriority(os.PRIO_PROCESS, 0))
privileged_only = pytest.mark.skipif(not MAY_RETURN, reason="this user may not raise a priority")
others_only = pytest.mark.skipif(
    MAY_RETURN and os.geteuid() != 0, reason="this user may, and cannot become one who may not"
)
BOTH = [pytest.param(True, marks=privileged_only), pytest.param(False, marks=others_only)]


@privileged_only
def test_a_privileged_process_steps_back_with_all_its_threads_and_comes_back():
    run(
        "first = gentle.gently(Pool)\n"
        "assert (first.made_at, first.runs_at) == (0, 0)\n"
        "gentle.step_back()\n"
        "assert nice(threading.get_native_id()) == usual + 10 == nice(first.thread)\n"
        "second = gentle.gently(Pool)\n"
        "assert (second.made_at, second.runs_at) == (10, 10), 'whatever starts meanwhile gives way too'\n"
        "gentle.step_back()\n"
        "assert nice(first.thread) == usual + 10, 'once is enough'\n"
        "gentle.come_back()\n"
        "assert {nice(each) for each in (threading.get_native_id(), first.thread, second.thread)} == {usual}\n",
        privileged=True,
    )


@others_only
def test_others_load_gently_what_needs_no_new_threads_and_nothing_that_serves_has_a_low_priority():
    run(
        "gentle.step_back()\n"
        "assert nice(threading.get_native_id()) == usual, 'it could not come back'\n"
        "first = gentle.gently(Pool)\n"
        "assert (first.made_at, first.runs_at) == (0, 0), 'it starts threads'\n"
        "first.close()\n"
        "second = gentle.gently(Pool)\n"
        "assert (second.made_at, second.runs_at) == (10, 0)\n"
        "assert Pool.made == 2\n"
        "third = gentle.gently(Pool)\n"
        "assert (third.made_at, third.runs_at) == (0, 0), 'none was left: made anew'\n"
        "assert Pool.made == 4\n"
        "third.close()\n"
        "assert gentle.gently(Pool).runs_at == 0, 'what was started at a low priority is nobody\\'s any more'\n"
        "assert nice(threading.get_native_id()) == usual\n",
        privileged=False,
    )


@others_only
def test_the_thread_that_loads_is_none_of_the_runtimes():
    """It is still there for a moment when what it made is looked at."""
    run(
        "first = gentle.gently(Pool)\n"
        "for _ in range(20):\n"
        "    first.close()\n"
        "    first = gentle.gently(Pool)\n"
        "    assert (first.made_at, first.runs_at) == (10, 0)\n"
        "assert Pool.made == 21\n",
        privileged=False,
    )


@pytest.mark.parametrize("privileged", BOTH)
def test_what_is_measured_has_the_usual_priority_and_the_process_gives_way_again_unless_it_was_called(privileged):
    run(
        "gentle.step_back()\n"
        "low = nice(threading.get_native_id())\n"
        "pool = gentle.plainly(Pool)\n"
        "assert (pool.made_at, pool.runs_at) == (0, 0)\n"
        "assert nice(threading.get_native_id()) == low == nice(pool.thread)\n"
        "assert gentle.begun\n"
        "gentle.plainly(gentle.come_back)\n"
        "assert nice(threading.get_native_id()) == usual\n",
        privileged=privileged,
    )


@others_only
def test_what_starts_threads_every_time_is_not_loaded_twice_for_ever():
    run(
        "pools = [gentle.gently(Pool) for _ in range(6)]\n"
        "assert [pool.runs_at for pool in pools] == [0] * 6\n"
        "assert Pool.made == 6 + 2\n",
        privileged=False,
    )


@pytest.mark.parametrize("privileged", BOTH)
def test_what_goes_wrong_is_raised_where_it_was_asked_for(privileged):
    run(
        "gentle.begun = True\n"
        "try:\n"
        "    gentle.gently(lambda: 1 / 0)\n"
        "except ZeroDivisionError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('swallowed')\n",
        privileged=privileged,
    )
