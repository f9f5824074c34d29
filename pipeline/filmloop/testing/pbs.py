"""A stand-in for PBS Professional: `qsub`, `qstat`, `qselect`, `qdel`, `mpiexec`, for a machine on which there is no PBS.

It is not PBS. It answers the commands that `adapters.pbs` gives in the form of the reference guide, runs a script at once
as a process of this machine, and knows neither nodes nor limits. What it shows is that the launcher keeps its promises
when PBS does what its manual says.

    python -m filmloop.testing.pbs FOLDER qsub SCRIPT | qstat -x -f -F json [ID ...] | qselect -x -u USER -N NAME | qdel ID | mpiexec ...
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filmloop.core.fsio import atomic_write_json, create_json, read_json

SERVER = "stand-in"
FINISHED, TERMINATED, FAILED = 92, 91, 93
"""Substates of a job in state F; one that was deleted has the exit status of its shell all the same."""
NO_HISTORY = "no-history"
"""A file of this name in the folder: ended jobs are forgotten, and whoever asks for them gets an error and exit code 0."""
KILL_DELAY_S = 1.0
"""Between SIGTERM and SIGKILL of qdel; 10 s by default in PBS."""


def install(folder: Path) -> Path:
    """Write the commands into `folder/bin`; returns that folder, to be put on the PATH."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in ("qsub", "qstat", "qselect", "qdel", "mpiexec"):
        path = commands / name
        words = shlex.join([sys.executable, "-m", "filmloop.testing.pbs", str(folder), name])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return commands


def qsub(folder: Path, script: Path) -> int:
    """Queue the script and start it at once; prints the job's id."""
    options = dict(_options(script))
    number = 1
    record: dict[str, Any] = {"Job_Name": options.get("-N", ""), "job_state": "Q"}
    if "-v" in options:
        record["Variable_List"] = dict(pair.split("=", 1) for pair in options["-v"].split(","))
    while not create_json(folder / f"{number}.{SERVER}.json", record):
        number += 1
    batch_id = f"{number}.{SERVER}"
    (folder / f"{batch_id}.sh").write_bytes(script.read_bytes())
    subprocess.Popen(
        [sys.executable, "-m", "filmloop.testing.pbs", str(folder), "run", batch_id, options.get("-o", "/dev/null")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(batch_id)
    return 0


def run(folder: Path, batch_id: str, output: str) -> int:
    """Run a queued job to its end: the part of PBS's execution daemon."""
    record = _read(folder, batch_id)
    if record["job_state"] != "Q":
        return 0
    with open(output, "ab") as out:
        child = subprocess.Popen(
            ["bash", str(folder / f"{batch_id}.sh")],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "PBS_JOBID": batch_id},
        )  # fmt: skip
    _write(folder, batch_id, {**record, "job_state": "R", "session_id": child.pid})
    code = child.wait()
    status = code if code >= 0 else 256 - code
    _write(folder, batch_id, {**record, **_finished(folder, batch_id, status), "Exit_status": status})
    return 0


def _finished(folder: Path, batch_id: str, status: int) -> dict[str, Any]:
    """As OpenPBS writes it down: `svr_setjob_histinfo`, `update_job_finish_comment`."""
    if (folder / f"{batch_id}.deleted").exists():
        return {"job_state": "F", "substate": TERMINATED, "comment": "Job run and terminated"}
    substate, how = (FAILED, "failed") if status else (FINISHED, "finished")
    return {"job_state": "F", "substate": substate, "comment": f"Job run and {how}"}


def _known(folder: Path, words: list[str]) -> dict[str, Any]:
    """The jobs that a command sees."""
    known = {path.stem: read_json(path) for path in folder.glob(f"*.{SERVER}.json")}
    if not (folder / NO_HISTORY).exists():
        return known
    if "-x" in words:
        print("PBS is not configured to maintain job history", file=sys.stderr)
        return {}
    return {name: job for name, job in known.items() if job["job_state"] != "F"}


def qstat(folder: Path, words: list[str]) -> int:
    """Print the jobs, as `qstat -x -f -F json` does: digits have no quotes, also those of 005, which is no JSON then."""
    batch_ids, known = [word for word in words if word[0].isdigit()], _known(folder, words)
    is_told = "-x" in words and (folder / NO_HISTORY).exists()
    if not is_told and (missing := [batch_id for batch_id in batch_ids if batch_id not in known]):
        print(f"qstat: Unknown Job Id {missing[0]}", file=sys.stderr)
        return 153
    jobs = {name: job for name, job in known.items() if not batch_ids or name in batch_ids}
    said = json.dumps({"timestamp": int(time.time()), "pbs_version": "0", "pbs_server": SERVER, "Jobs": jobs})
    print(re.sub(r': "(\d+)"', r": \1", said))
    return 0


def qselect(folder: Path, words: list[str]) -> int:
    """Print the ids of the jobs of a name; all are of one user."""
    name = words[words.index("-N") + 1]
    print("\n".join(batch_id for batch_id, job in _known(folder, words).items() if job["Job_Name"] == name))
    return 0


def qdel(folder: Path, batch_id: str) -> int:
    """SIGTERM to the job's shell, SIGKILL to its session a little later."""
    if not (folder / f"{batch_id}.json").exists():
        print(f"qdel: Unknown Job Id {batch_id}", file=sys.stderr)
        return 153
    record = _read(folder, batch_id)
    if record["job_state"] == "F":
        print(f"qdel: Job has finished {batch_id}", file=sys.stderr)
        return 35
    (folder / f"{batch_id}.deleted").touch()
    if record["job_state"] == "Q":
        _write(folder, batch_id, {**record, "job_state": "F", "substate": TERMINATED})
        return 0
    with suppress(ProcessLookupError):
        os.kill(record["session_id"], signal.SIGTERM)
    end_s = time.monotonic() + KILL_DELAY_S
    while _read(folder, batch_id)["job_state"] != "F" and time.monotonic() < end_s:
        time.sleep(0.02)
    if _read(folder, batch_id)["job_state"] != "F":
        with suppress(ProcessLookupError):
            os.killpg(record["session_id"], signal.SIGKILL)
    return 0


def mpiexec(words: list[str]) -> None:
    """Become the command: one process, whatever the options before it say."""
    while words and words[0].startswith("-"):
        words = words[2:]
    os.execvp(words[0], words)


def _options(script: Path) -> list[tuple[str, str]]:
    lines = [line.split(maxsplit=2) for line in script.read_text().splitlines() if line.startswith("#PBS ")]
    return [(line[1], line[2]) for line in lines if len(line) == 3]


def _read(folder: Path, batch_id: str) -> dict[str, Any]:
    value = read_json(folder / f"{batch_id}.json")
    assert isinstance(value, dict)
    return value


def _write(folder: Path, batch_id: str, record: dict[str, Any]) -> None:
    atomic_write_json(folder / f"{batch_id}.json", record)


def main(folder: Path, name: str, words: list[str]) -> int:
    """Do what the command of this name does."""
    if name == "qsub":
        return qsub(folder, Path(words[-1]))
    if name == "run":
        return run(folder, *words)
    if name == "qdel":
        return qdel(folder, words[0])
    if name == "mpiexec":
        mpiexec(words)
    if name == "qselect":
        return qselect(folder, words)
    return qstat(folder, words)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
