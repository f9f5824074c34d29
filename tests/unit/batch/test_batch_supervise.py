"""The supervisor on the first node of a job, and the start that has taken its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from filmloop.adapters.batch.attempt import Attempt, Started
from filmloop.adapters.local.mark import kill_marked, marked_processes
from filmloop.adapters.local.runfolder import Exit
from filmloop.core.clock import utc_now
from filmloop.core.retry import wait_until

TOKEN = "0123456789abcdef" * 2


@contextmanager
def supervised(folder: Path, *code: str, **keys: float) -> Iterator[tuple[subprocess.Popen[bytes], Started]]:
    """A supervisor, a process of its own, whose command has started."""
    values = {"deadline_s": 60.0, "save_after_s": 60.0, "grace_s": 2.0, **keys}
    command = (sys.executable, "-c", ";".join(code))
    Attempt(
        attempt=1, token=TOKEN, name="fl-1", command=command, stop=(), threads=1, submitted_utc=utc_now(), **values
    ).write(folder)
    argv = [sys.executable, "-m", "filmloop.adapters.batch.supervise", str(folder), TOKEN, "JOB_ID"]
    with subprocess.Popen(argv, env={**os.environ, "JOB_ID": "7"}, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: marked_processes(TOKEN) or None, deadline_s=30, what="the command", first_s=0.02)
            started = Started.read(folder)
            assert started is not None
            yield process, started
        finally:
            process.kill()
            kill_marked(TOKEN)


@pytest.mark.parametrize("code", ["time.sleep(600)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
def test_a_start_whose_job_was_started_again_elsewhere_ends_and_leaves_the_folder_alone(
    tmp_path: Path, code: str
) -> None:
    """A node that Slurm has lost sight of trains on: two would train into one folder, and the last to end have the last word."""
    with supervised(tmp_path, "import signal, time", code, grace_s=0.3) as (process, started):
        replace(started, host="another", started_utc=utc_now()).write(tmp_path)
        assert process.wait(20) == 0
        assert marked_processes(TOKEN) == []
        assert Exit.read(tmp_path) is None


def test_what_a_replaced_start_ends_with_is_not_told(tmp_path: Path) -> None:
    """Its command may be gone before it has looked: the verdict of the start that took its place stays."""
    go = tmp_path / "go"
    wait = f"[time.sleep(0.001) for _ in iter(lambda: os.path.exists({str(go)!r}), True)]; sys.exit(6)"
    with supervised(tmp_path, "import os, sys, time", wait) as (process, started):
        replace(started, host="another", started_utc=utc_now()).write(tmp_path)
        done = Exit(exit_code=0, reason="ended", wall_s=1.0, ended_utc=utc_now())
        done.write(tmp_path)
        go.touch()
        assert process.wait(20) == 0
        assert Exit.read(tmp_path) == done


def test_a_job_that_has_succeeded_and_is_started_again_stays_a_success(tmp_path: Path) -> None:
    """A node may be lost while the batch system tidies up behind the job; it then goes back into the queue."""
    Attempt(
        attempt=1, token=TOKEN, name="fl-1", command=("false",), stop=(), threads=1, submitted_utc=utc_now(),
        deadline_s=60.0, save_after_s=60.0, grace_s=2.0,
    ).write(tmp_path)  # fmt: skip
    done = Exit(exit_code=0, reason="ended", wall_s=1.0, ended_utc=utc_now())
    done.write(tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/result.json").write_text("{}")
    argv = [sys.executable, "-m", "filmloop.adapters.batch.supervise", str(tmp_path), TOKEN, "JOB_ID"]
    assert subprocess.run(argv, env=os.environ, timeout=60).returncode == 0
    assert Exit.read(tmp_path) == done
