from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from filmloop.core.errors import DataError, FilmloopError, TrainingError, TransientError
from filmloop.training.failure import forget_earlier_error, leave_error

LOST = TransientError("The ranks lost each other.")
CAUSE = TrainingError("The loss is not finite.")


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells its ranks."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "start-2")
    monkeypatch.setenv("MASTER_PORT", "4711")


def leave_as_of_another_start(folder: Path, error: FilmloopError, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setenv("TORCHELASTIC_RUN_ID", "start-1")
        leave_error(folder, error)


def message(folder: Path) -> str:
    assert [path.name for path in folder.iterdir()] == ["error.json"], "nothing else is left behind"
    return str(json.loads((folder / "error.json").read_text())["message"])


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        (CAUSE, LOST, CAUSE),
        (LOST, CAUSE, CAUSE),
        (CAUSE, DataError("A shard is damaged."), CAUSE),
        (LOST, TransientError("Lost as well."), LOST),
    ],
)
def test_the_error_that_tells_most_stays_and_of_two_that_tell_as_much_the_first(
    tmp_path: Path, first: FilmloopError, second: FilmloopError, stays: FilmloopError
) -> None:
    leave_error(tmp_path, first)
    leave_error(tmp_path, second)
    assert message(tmp_path) == stays.message


def test_an_error_of_an_earlier_start_never_hides_one_of_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_as_of_another_start(tmp_path, CAUSE, monkeypatch)
    leave_error(tmp_path, LOST)
    assert message(tmp_path) == LOST.message


def test_the_first_rank_forgets_the_error_of_an_earlier_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_earlier_error(tmp_path)
    leave_as_of_another_start(tmp_path, CAUSE, monkeypatch)
    forget_earlier_error(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_rank_leaves_what_another_rank_of_this_start_said_already(tmp_path: Path) -> None:
    leave_error(tmp_path, CAUSE)
    forget_earlier_error(tmp_path)
    assert message(tmp_path) == CAUSE.message


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_document_that_is_none_is_in_nobodys_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_text(text)
    leave_error(tmp_path, LOST)
    assert message(tmp_path) == LOST.message


def test_without_torchrun_every_process_is_a_start_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    code = (
        "import sys; from pathlib import Path; from filmloop.core.errors import TrainingError; "
        "from filmloop.training.failure import leave_error; leave_error(Path(sys.argv[1]), TrainingError('earlier'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert message(tmp_path) == "earlier"
    forget_earlier_error(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_many_ranks_at_once_the_cause_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rounds of nine writers that may meet in any order; the first rank forgets an earlier error meanwhile."""
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        leave_as_of_another_start(folder, DataError("of an earlier start"), monkeypatch)
        errors: list[FilmloopError] = [LOST] * 4 + [CAUSE] + [LOST] * 3
        ranks = [threading.Thread(target=leave_error, args=(folder, error)) for error in errors]
        ranks.append(threading.Thread(target=forget_earlier_error, args=(folder,)))
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert message(folder) == CAUSE.message


@pytest.mark.parametrize(
    ("rank_does", "code"), [("pass", 0), ("sys.exit(6)", 6), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_torchrun_ends_as_its_rank_did(tmp_path: Path, rank_does: str, code: int) -> None:
    rank = tmp_path / "rank.py"
    rank.write_text(f"import os, signal, sys\n{rank_does}\n")
    command = [sys.executable, "-m", "filmloop.training.torchrun", "--standalone", "--nproc-per-node=1", str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert ("Root Cause" in done.stderr) == (code != 0)
