from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from filmloop.adapters.local.held import hold, is_held
from filmloop.adapters.local.launcher import LocalLauncher
from filmloop.adapters.local.mark import TOKEN, kill_marked, marked_processes
from filmloop.adapters.local.outcome import last_words
from filmloop.adapters.local.runfolder import ATTEMPT_LINE, Launch, last_metrics, log_tail
from filmloop.config.schema import LocalLauncher as LauncherSection
from filmloop.core.errors import DataError
from filmloop.testing.contracts.launcher import LauncherSite, ended


def shell(script: str, *, threads: int = 1) -> LocalLauncher:
    """A launcher whose trainer is `sh -c script`, with the path of job.json as $0."""
    return LocalLauncher(section=LauncherSection(threads=threads), command=("sh", "-c", script), grace_s=0.5)


@pytest.fixture
def site(tmp_path: Path) -> LauncherSite:
    return LauncherSite(runs=tmp_path, make=lambda: shell("exit 0"))


def test_ranks_get_their_threads_loopback_and_the_token(site: LauncherSite) -> None:
    launcher = shell('echo "threads=$OMP_NUM_THREADS net=$GLOO_SOCKET_IFNAME"; echo "job=$0"', threads=3)
    handle = launcher.submit(site.job("any"))
    log = ended(launcher, handle).log_tail
    assert "threads=3 net=lo" in log
    assert f"job={handle}/job.json" in log


def test_without_a_command_it_is_torchrun_over_the_entry(site: LauncherSite) -> None:
    launcher = LocalLauncher(section=LauncherSection(processes=2))
    handle = launcher.submit(site.job("any"))
    launcher.cancel(handle)
    command = Launch.read(Path(handle)).command
    assert command == (
        sys.executable, "-m", "filmloop.training.torchrun", "--standalone", "--nproc-per-node=2",
        "-m", "filmloop.training.entry", f"{handle}/job.json",
    )  # fmt: skip


def test_a_command_that_does_not_exist_is_a_failure_with_its_name(site: LauncherSite) -> None:
    launcher = LocalLauncher(section=LauncherSection(), command=("/no/such/python",))
    status = ended(launcher, launcher.submit(site.job("any")))
    assert (status.state, status.exit_code) == ("failed", 127)
    assert "/no/such/python" in status.detail


def leaves(error: str, exit_code: int) -> LocalLauncher:
    """A launcher whose trainer writes `error` to error.json and ends."""
    return shell(f"""echo '{error}' > "$(dirname "$0")/error.json"; exit {exit_code}""")


@pytest.mark.parametrize("exit_code", [1, 137])  # 137: another rank was killed, this one had told why
def test_what_the_trainer_said_counts_more_than_how_it_ended(site: LauncherSite, exit_code: int) -> None:
    said = '{"error": "DataError", "message": "m", "hint": "h", "exit_code": 5, "retryable": false}'
    launcher = leaves(said, exit_code)
    status = ended(launcher, launcher.submit(site.job("any")))
    assert (status.state, status.exit_code) == ("failed", 5)
    assert (status.error, status.detail, status.hint) == ("DataError", "m", "h")


@pytest.mark.parametrize(
    "said",
    [
        '{"exit_code": 75}',
        '{"error": "TerminatedError", "exit_code": 75, "retryable": true}',
        '{"error": "TransientError", "exit_code": 3, "retryable": true}',
        '{"error": "NewerError", "exit_code": 9, "retryable": true}',
    ],
)
def test_a_retryable_error_behind_torchruns_1_is_lost_not_failed(site: LauncherSite, said: str) -> None:
    launcher = leaves(said, 1)
    assert ended(launcher, launcher.submit(site.job("any"))).state == "lost"


def test_a_trainer_that_could_not_write_its_error_is_judged_by_its_exit_code(site: LauncherSite) -> None:
    launcher = shell("exit 3")  # as on a full disk
    status = ended(launcher, launcher.submit(site.job("any")))
    assert (status.state, status.error) == ("lost", "TransientError")


# 139: SIGSEGV of a rank, as training.torchrun tells it; -9: of torchrun itself.
@pytest.mark.parametrize(("script", "code"), [("exit 139", 139), ("kill -9 $$", -9)])
def test_a_trainer_that_a_signal_killed_is_lost(site: LauncherSite, script: str, code: int) -> None:
    launcher = shell(script)
    status = ended(launcher, launcher.submit(site.job("any")))
    assert (status.state, status.exit_code, status.error) == ("lost", code, "")
    assert f"signal {code % 128 if code > 0 else -code}" in status.detail


def test_a_deadline_is_a_failure_whatever_the_trainer_said_at_its_end(site: LauncherSite) -> None:
    said = '{"error": "TerminatedError", "message": "m", "hint": "h", "exit_code": 75, "retryable": true}'
    # The last words take less than the half second of grace.
    launcher = shell(f"""trap 'echo "{said.replace('"', chr(92) + '"')}" > "$(dirname "$0")/error.json"; exit 75' TERM
                     while :; do sleep 0.05; done""")
    status = ended(launcher, launcher.submit(site.job("any", deadline_s=0.5)))
    assert (status.state, status.exit_code, status.error, status.hint) == ("failed", 75, "", "")
    assert "deadline" in status.detail


def test_a_bundle_that_was_published_in_the_last_moment_before_the_deadline_counts(site: LauncherSite) -> None:
    launcher = shell("""trap 'mkdir -p "$(dirname "$0")/bundle"; echo "{}" > "$(dirname "$0")/bundle/result.json"; exit 143' TERM
                     while :; do sleep 0.05; done""")
    status = ended(launcher, launcher.submit(site.job("any", deadline_s=0.5)))
    assert (status.state, status.exit_code) == ("succeeded", 0)
    assert [file.path for file in status.bundle_files] == ["result.json"]


def test_a_damaged_error_document_is_replaced_by_the_log(site: LauncherSite) -> None:
    launcher = shell("""echo '{"exit' > "$(dirname "$0")/error.json"; echo the end; exit 9""")
    status = ended(launcher, launcher.submit(site.job("any")))
    assert (status.state, status.exit_code) == ("failed", 9)
    assert "the end" in status.detail


def test_the_last_words_are_the_trainers_and_not_of_those_who_started_it() -> None:
    started = f"{ATTEMPT_LINE}1 at 2026-11-28T18:36:09Z, supervisor 7, command 8"
    assert last_words(f"the end\n{started}\n\nsrun: error: node: task 0: Exited with exit code 9\n") == "the end"
    assert last_words("filmloop: cannot start /bin/none: not found\n") == "filmloop: cannot start /bin/none: not found"
    assert last_words(f"{started}\n") == ""


def test_the_errors_of_an_earlier_attempt_are_forgotten(site: LauncherSite) -> None:
    script = (
        """cd "$(dirname "$0")"; [ -f second ] && exit 5; touch second; echo '{"exit_code": 75}' > error.json; exit 1"""
    )
    launcher = shell(script)
    handle = launcher.submit(site.job("any"))
    assert ended(launcher, handle).state == "lost"
    launcher.submit(site.job("any"))
    status = ended(launcher, handle)
    assert (status.state, status.exit_code) == ("failed", 5)
    assert Launch.read(Path(handle)).attempt == 2


def test_children_that_stay_behind_end_with_the_trainer(site: LauncherSite) -> None:
    launcher = shell("setsid sleep 600 & exit 0")
    handle = launcher.submit(site.job("any"))
    ended(launcher, handle)
    assert marked_processes(Launch.read(Path(handle)).token) == []


def test_another_job_in_the_same_run_folder_is_refused(site: LauncherSite) -> None:
    launcher = site.make()
    job = site.job("any")
    ended(launcher, launcher.submit(job))
    with pytest.raises(DataError, match="j2"):
        launcher.submit(job.model_copy(update={"job_id": "j2"}))


def test_a_job_that_was_never_started_is_lost(site: LauncherSite, tmp_path: Path) -> None:
    job = site.job("any")
    job.write(Path(job.output_dir, "job.json"))  # as a caller leaves it that was killed right then
    launcher = site.make()
    assert launcher.poll(job.output_dir).state == "lost"
    launcher.submit(job)
    assert ended(launcher, job.output_dir).state == "failed"


def test_the_lock_lives_as_long_as_the_process_it_was_handed_to(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    assert not is_held(path)
    with hold(path) as lock:
        assert lock is not None
        assert is_held(path)
        with hold(path) as second:
            assert second is None
        child = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    assert is_held(path)
    child.kill()
    child.wait()
    assert not is_held(path)


def test_kill_marked_kills_those_with_the_token_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "token-of-this-test")
    mine = subprocess.Popen(["sleep", "600"])
    monkeypatch.setenv(TOKEN, "token-of-this-test-2")
    other = subprocess.Popen(["sleep", "600"])
    assert kill_marked("token-of-this-test") == 1
    assert mine.wait() == -9
    assert other.poll() is None
    other.kill()
    other.wait()


def test_progress_is_the_last_whole_line_and_its_numbers(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) is None
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 0.5, "note": "x"}\n{"step": 2, "lo')
    assert last_metrics(tmp_path) == {"step": 1, "loss": 0.5}
    metrics.write_text("no json\n")
    assert last_metrics(tmp_path) is None


def test_the_log_tail_is_short_however_long_the_log_is(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    (tmp_path / "run.log").write_bytes(b"\xff\n" + b"x" * 100_000 + b"\n" + b"\n".join(b"%d" % n for n in range(100)))
    assert log_tail(tmp_path, lines=3) == "97\n98\n99"
    assert len(log_tail(tmp_path)) < 8192


def test_the_supervisor_is_small_and_quick(tmp_path: Path) -> None:
    code = "import filmloop.adapters.local.supervise, sys, json; print(json.dumps(sorted(sys.modules)))"
    began_s = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "pydantic"} & set(json.loads(out))
    # 0.05 s measured on an idle machine.
    assert time.monotonic() - began_s < 5.0
