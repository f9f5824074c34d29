"""What is asked of the cluster's side, its folder and its queue, and what the answers mean."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filmloop.adapters.globus.checks import over_there, queue
from filmloop.adapters.globus.checks.node import PROBE, gpus_finding, locks_finding
from filmloop.adapters.globus.checks.side import folder_finding

PBS = {"engine": "pbs", "account": "physics", "queue": "debug", "walltime": "00:30:00", "nodes_per_block": 2}
# What `qstat -Q -f` of PBS Professional prints, by its reference guide.
OPEN = """Queue: debug
    queue_type = Execution
    total_jobs = 3
    resources_max.nodect = 2
    resources_max.walltime = 01:00:00
    resources_min.nodect = 1
    resources_min.walltime = 00:05:00
    enabled = True
    started = True
"""


def test_slurm_judges_a_script_with_what_the_options_say() -> None:
    options = {
        "engine": "slurm", "account": "m1", "qos": "debug", "constraint": "gpu", "gpus_per_node": 4,
        "cpus_per_node": 128, "nodes_per_block": 2, "walltime": "00:30:00", "scheduler_options": "#SBATCH --mail-type=NONE",
    }  # fmt: skip
    asked = queue.question_for(options)
    assert asked is not None
    assert asked.words == ("sbatch", "--test-only")
    for line in (
        "--account=m1", "--qos=debug", "--constraint=gpu", "--gpus-per-node=4", "--cpus-per-task=128", "--nodes=2",
        "--time=00:30:00", "--exclusive", "--mail-type=NONE",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in asked.script
    assert "partition" not in asked.script
    subprocess.run(["bash", "-n"], input=asked.script, text=True, check=True)


def test_where_nothing_is_queued_nothing_is_asked() -> None:
    assert queue.question_for({"engine": "control"}) is None
    assert queue.question_for({"account": "of a facility's own template"}) is None


@pytest.mark.parametrize(
    ("said", "fine", "words"),
    [
        (OPEN, True, "queue debug takes such jobs"),
        (OPEN.replace("enabled = True", "enabled = False"), False, "enabled = False"),
        (OPEN.replace("started = True", "started = False"), False, "started = False"),
        (OPEN.replace("01:00:00", "00:20:00"), False, "walltime of at most 00:20:00"),
        (OPEN.replace("01:00:00", "1200"), False, "walltime of at most 1200"),
        (OPEN.replace("00:05:00", "00:31:00"), False, "walltime of at least 00:31:00"),
        (OPEN.replace("max.nodect = 2", "max.nodect = 1"), False, "nodes_per_block of at most 1"),
        (
            OPEN.replace("min.nodect = 1", "min.nodect = 10"),
            False,
            "nodes_per_block of at least 10, [launcher.options] says 2",
        ),
        ("Queue: debug\n", True, "takes such jobs"),
    ],
)
def test_a_queue_of_pbs_is_judged_by_its_attributes(said: str, fine: bool, words: str) -> None:
    found, detail = queue.judge(PBS, 0, said)
    assert found is fine
    assert words in detail


def test_a_refusal_is_told_in_the_queues_own_words() -> None:
    assert queue.judge(PBS, 170, "qstat: Unknown queue nosuch\n") == (False, "qstat: Unknown queue nosuch")
    fine, words = queue.judge(PBS, 127, "[Errno 2] No such file or directory: 'qstat'")
    assert (fine, "no such command" in words) == (False, True)


def test_the_program_for_the_cluster_needs_nothing_but_python(tmp_path: Path) -> None:
    request = {
        "folder": str(tmp_path), "file": "", "sha256": "", "queue": ["sh", "-c", "cat; exit 3"], "script": "it's \\ \"x\"",
        "options": {}, "endpoint": "", "lock": {},
    }  # fmt: skip
    done = subprocess.run(
        ["python3", "-I", "-S", "-c", over_there.program(request)], capture_output=True, text=True, check=True
    )

    said = json.loads(done.stdout)
    assert said["queue"] == {"code": 3, "said": 'it\'s \\ "x"'}
    assert (said["folder"]["wrong"], said["file"]["wrong"], said["template"]["seen"]) == ("", "", False)


@pytest.mark.parametrize(
    ("folder", "file", "state", "words"),
    [
        ({"wrong": "", "user": "loop", "free_bytes": 1e12}, {"wrong": "", "owner": "loop"}, "ok", "the sent file is there"),
        ({"wrong": "", "user": "loop", "free_bytes": 1e12}, {"wrong": "", "owner": ""}, "ok", "1000 GB free"),
        ({"wrong": "", "user": "loop", "free_bytes": 1e9}, {"wrong": "", "owner": "loop"}, "warn", "1 GB free"),
        ({"wrong": "", "user": "loop", "free_bytes": 1e12}, {"wrong": "", "owner": "pi"}, "warn", "writes as pi"),
        ({"wrong": "", "user": "loop", "free_bytes": 1e12}, {"wrong": "No such file", "owner": ""}, "fail", "No such file"),
        ({"wrong": "/x is no folder there", "user": "loop"}, {"wrong": "", "owner": ""}, "fail", "no folder"),
    ],
)  # fmt: skip
def test_what_the_clusters_side_says_of_the_folder(
    folder: dict[str, object], file: dict[str, object], state: str, words: str
) -> None:
    found = folder_finding(folder, file)
    assert (found.state, words in found.detail, bool(found.hint)) == (state, True, state != "ok")


def test_a_file_is_asked_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("x")
    if os.getuid() == 0:
        os.chown(tmp_path / "sent", 12345, 12345)
    request = {"folder": str(tmp_path), "file": "sent", "sha256": hashlib.sha256(b"x").hexdigest()}
    assert over_there.file(request) == {"wrong": "", "owner": "12345" if os.getuid() == 0 else getpass.getuser()}


def asked(folder: Path, do: str, *, wait_s: float = 30.0) -> dict[str, dict[str, object]]:
    """What a process of its own says that holds or tries the lock in a folder."""
    lock = {"do": do, "path": str(folder / "lock"), "wait_s": wait_s}
    request = {"folder": "", "file": "", "queue": [], "script": "", "options": {}, "endpoint": "", "lock": lock}
    program = ["python3", "-I", "-S", "-c", over_there.program(request)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_a_lock_that_one_holds_is_seen_by_the_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads:
        holder = threads.submit(asked, tmp_path, "hold")
        tried, held = asked(tmp_path, "try")["lock"], holder.result()["lock"]
    found = locks_finding(held, tried)
    assert (found.state, "is seen on" in found.detail) == ("ok", True), (held, tried)


def test_a_lock_that_the_other_does_not_see_is_told_with_the_mount_option(tmp_path: Path) -> None:
    (tmp_path / "lock.held").touch()  # as where locks are of one host alone
    tried = asked(tmp_path, "try")["lock"]
    assert (tried["found"], tried["locked"]) == (True, False)
    found = locks_finding({"wrong": "", "tried": True, "host": "n1"}, tried)
    assert (found.state, "is not seen on" in found.detail) == ("warn", True)
    assert "`flock`, not `localflock`" in found.hint


def test_a_folder_without_locks_is_told_by_who_would_hold_one(tmp_path: Path) -> None:
    held = asked(tmp_path / "absent", "hold")["lock"]
    assert "No such file" in str(held["wrong"])
    assert locks_finding(held, {}).state == "warn"
    found = locks_finding({**held, "errno": errno.ENOSYS}, {})
    assert (found.state, "`flock`" in found.hint) == ("fail", True)


def test_two_that_do_not_meet_have_tested_nothing(tmp_path: Path) -> None:
    tried = asked(tmp_path, "try", wait_s=0.1)["lock"]
    held = asked(tmp_path, "hold", wait_s=0.1)["lock"]
    assert "not tested" in locks_finding(held, tried).detail
    # The node had let go before the login node came.
    found = locks_finding(held, asked(tmp_path, "try", wait_s=0.1)["lock"])
    assert (found.state, "not tested" in found.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("seen", "wanted", "state", "words"),
    [
        (4, 4, "ok", "sees 4"), (2, 4, "fail", "cannot share"), (4, 1, "warn", "3 would be idle"),
        (0, 4, "warn", "on CPUs"),
    ],
)  # fmt: skip
def test_a_nodes_gpus_are_compared_with_the_ranks(seen: int, wanted: int, state: str, words: str) -> None:
    found = gpus_finding(seen, wanted)
    assert (found.state, words in found.detail, bool(found.hint)) == (state, True, state != "ok")


def test_the_probe_for_a_node_runs_without_torch_too() -> None:
    done = subprocess.run(["python3", "-I", "-S", "-c", PROBE], capture_output=True, text=True, check=True)
    assert "gpus" not in json.loads(done.stdout.splitlines()[-1])
