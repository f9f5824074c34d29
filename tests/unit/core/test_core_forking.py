from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from filmloop.core.forking import close_inherited, fork
from filmloop.core.retry import wait_until

PARENT = """
import os, sys, time
from filmloop.core.forking import fork
child = fork(lambda: time.sleep(600))
print(child.pid, flush=True)
time.sleep(600)
"""


def fails() -> int:
    raise ValueError("no such luck")


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: None, 0),
        (lambda: 5, 5),
        (lambda: sys.exit(75), 75),
        (lambda: sys.exit("in words"), 1),
        (fails, 1),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
    ],
    ids=["nothing", "a number", "exit", "exit in words", "an exception", "a signal"],
)
def test_a_child_ends_with_the_code_that_a_program_would_have(work, code):
    child = fork(work)
    assert child.wait(60) == code
    assert child.poll() == code
    child.terminate()  # ended: nobody gets a signal


def test_waiting_for_a_child_that_runs_gives_up_in_time_and_a_kill_ends_it():
    child = fork(lambda: time.sleep(600))
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    child.kill()
    assert child.wait(60) == -signal.SIGKILL


def test_a_child_forgets_its_parents_handlers_and_runs_its_own_at_the_end(tmp_path: Path):
    import atexit

    def work() -> None:
        atexit.register((tmp_path / "own").touch)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    parents = (tmp_path / "parents").touch
    atexit.register(parents)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert fork(work).wait(60) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
        atexit.unregister(parents)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_child_keeps_the_files_it_names_and_no_others(tmp_path: Path):
    with (tmp_path / "a").open("w") as kept, (tmp_path / "b").open("w") as other:

        def work() -> int:
            close_inherited(kept.fileno())
            os.write(kept.fileno(), b"here")
            try:
                os.fstat(other.fileno())
            except OSError:
                return 0
            return 1

        assert fork(work).wait(60) == 0
    assert (tmp_path / "a").read_text() == "here"


def test_a_child_dies_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()

    def is_gone() -> bool | None:
        try:
            return True if "\nState:\tZ" in Path(f"/proc/{child}/status").read_text() else None
        except OSError:
            return True

    wait_until(is_gone, deadline_s=60, what="the end of the child")
