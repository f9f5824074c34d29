from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmloop.core.documents import AliasMove
from filmloop.core.errors import DataError, TransientError
from filmloop.ledger import DAMAGED, IN_CYCLE, TRAINED, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def move(to: str = "2", *, alias: str = "champion", model: str = "m") -> AliasMove:
    return AliasMove(
        utc="2026-01-01T00:00:00.000Z", model=model, alias=alias, from_version="1", to_version=to, who="x", why="y"
    )


def test_a_cycle_is_open_until_it_is_finished(ledger: Ledger) -> None:
    assert ledger.open_cycle() is None
    row = ledger.start_cycle()
    assert ledger.open_cycle() == row
    ledger.finish_cycle(row.cycle_id, "promoted", {"version": "3"})
    assert ledger.open_cycle() is None
    finished = ledger.cycle(row.cycle_id)
    assert (finished.outcome, finished.summary) == ("promoted", {"version": "3"})


def test_history_is_newest_first(ledger: Ledger) -> None:
    ids = []
    for _ in range(3):
        row = ledger.start_cycle()
        ledger.finish_cycle(row.cycle_id, "refused", {})
        ids.append(row.cycle_id)
    assert [row.cycle_id for row in ledger.history(2)] == ids[:0:-1]


def test_history_is_as_cycles_were_begun_though_the_clock_was_set_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for utc in ("2026-11-30T00:00:00.000Z", "2026-11-29T00:00:00.000Z"):
        monkeypatch.setattr("filmloop.ledger.utc_now", lambda utc=utc: utc)
        ids.append(ledger.start_cycle().cycle_id)
        ledger.finish_cycle(ids[-1], "refused", {})
    assert [row.cycle_id for row in ledger.history()] == ids[::-1]


def test_history_of_one_outcome_looks_behind_all_others(ledger: Ledger) -> None:
    outcomes = ["failed", "nothing_to_do", "nothing_to_do", "failed", "promoted"]
    for outcome in outcomes:
        ledger.finish_cycle(ledger.start_cycle().cycle_id, outcome, {})
    assert [row.outcome for row in ledger.history(3, outcome="failed")] == ["failed", "failed"]


def test_a_step_that_is_done_comes_back_with_its_result_and_one_that_was_cut_off_with_its_handle(
    ledger: Ledger,
) -> None:
    cycle = ledger.start_cycle().cycle_id
    assert ledger.begin_step(cycle, "move").result is None
    ledger.keep_handle(cycle, "move", "h1")
    ledger.add_step_time(cycle, "move", 1.5)
    again = ledger.begin_step(cycle, "move")
    assert (again.result, again.handle, again.attempts) == (None, "h1", 2)
    ledger.end_step(cycle, "move", {"files": 3}, 2.0)
    done = ledger.begin_step(cycle, "move")
    assert (done.result, done.seconds, done.attempts) == ({"files": 3}, 3.5, 2)


def test_shards_of_an_open_cycle_may_not_expire_and_trained_ones_may_once_it_is_closed(ledger: Ledger) -> None:
    assert not ledger.may_expire("s/1"), "a fresh shard stays"
    cycle = ledger.start_cycle().cycle_id
    ledger.choose_shards(cycle, ["s/1", "s/2"])
    assert ledger.shard_states() == {"s/1": IN_CYCLE, "s/2": IN_CYCLE}
    assert not ledger.may_expire("s/1")
    ledger.finish_cycle(cycle, "promoted", {}, trained=["s/1"])
    assert ledger.shard_states() == {"s/1": TRAINED}, "chosen but not trained is fresh again"
    assert ledger.may_expire("s/1")
    second = ledger.start_cycle().cycle_id
    ledger.choose_shards(second, ["s/1"])
    assert ledger.shard_states() == {"s/1": TRAINED}, "mixed in again, it stays trained"
    assert not ledger.may_expire("s/1"), "the open cycle reads it"
    ledger.finish_cycle(second, "failed", {})
    assert ledger.may_expire("s/1")


def test_a_damaged_shard_stays_out_until_it_is_taken_back(ledger: Ledger) -> None:
    cycle = ledger.start_cycle().cycle_id
    ledger.choose_shards(cycle, ["s/1"])
    ledger.set_aside(cycle, "s/2")
    ledger.finish_cycle(cycle, "promoted", {}, trained=["s/1"])
    assert ledger.shard_states() == {"s/1": TRAINED, "s/2": DAMAGED}
    assert not ledger.may_expire("s/2")
    for shard_id in ("s/1", "s/2"):
        ledger.take_back(shard_id)
    assert ledger.shard_states() == {"s/1": TRAINED}, "only a damaged one is taken back"


def test_rows_of_shards_that_are_gone_are_forgotten(ledger: Ledger) -> None:
    cycle = ledger.start_cycle().cycle_id
    ledger.finish_cycle(cycle, "promoted", {}, trained=["s/1", "s/2"])
    ledger.forget_shards(keep={"s/2", "s/3"})
    assert ledger.shard_states() == {"s/2": TRAINED}


def test_looking_creates_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "home" / "ledger.sqlite"
    with Ledger(path, read_only=True) as absent:
        assert absent.history() == []
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()  # what a process that is creating it has made first
    with Ledger(path, read_only=True) as unfinished:
        assert unfinished.history() == []
    assert path.stat().st_size == 0
    with Ledger(path) as ledger:
        cycle = ledger.start_cycle().cycle_id
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix == ".sqlite"}
    with Ledger(path, read_only=True) as looking:
        assert [row.cycle_id for row in looking.history()] == [cycle]
        with pytest.raises(TransientError):
            looking.start_cycle()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix == ".sqlite"} == before


def test_alias_moves_are_pending_until_ended_and_dropped_ones_leave_no_trace(ledger: Ledger) -> None:
    first, second = ledger.begin_move(move("2")), ledger.begin_move(move("3"))
    assert [number for number, _ in ledger.pending_moves()] == [first, second]
    ledger.end_move(first)
    ledger.drop_move(second)
    assert ledger.pending_moves() == []
    assert [m.to_version for m in ledger.moves("m")] == ["2"]
    ledger.drop_move(first)
    assert [m.to_version for m in ledger.moves("m")] == ["2"], "a finished move cannot be dropped"


def test_moves_are_listed_by_model_and_alias_newest_first(ledger: Ledger) -> None:
    for what in (move("2"), move("3"), move("4", alias="challenger"), move("9", model="other")):
        ledger.end_move(ledger.begin_move(what))
    assert [m.to_version for m in ledger.moves("m")] == ["4", "3", "2"]
    assert [m.to_version for m in ledger.moves("m", "champion", limit=1)] == ["3"]


def test_only_one_process_holds_the_cycle_lock_and_death_frees_it(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\nfrom filmloop.ledger import Ledger\n"
        "with Ledger(pathlib.Path(sys.argv[1])).cycle_lock() as free:\n    print(free, flush=True); sys.stdin.read()"
    )
    path = tmp_path / "ledger.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with Ledger(path) as ledger:
            with ledger.cycle_lock() as free:
                assert not free
            holder.kill()
            holder.wait()
            with ledger.cycle_lock() as free:
                assert free


def test_many_processes_may_open_a_journal_that_is_not_there_yet(tmp_path: Path) -> None:
    # All at the same instant, in 5 fresh folders: before creation was locked, one opening in 20 failed.
    script = (
        "import pathlib, sys, time\nfrom filmloop.ledger import Ledger\n"
        "for folder in range(5):\n    at = float(sys.argv[2]) + folder / 5\n    time.sleep(max(0.0, at - time.time()))\n"
        "    with Ledger(pathlib.Path(sys.argv[1], str(folder), 'ledger.sqlite')) as ledger: ledger.start_cycle()"
    )
    start = str(time.time() + 2.0)
    openers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), start], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [opener.communicate(timeout=60)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, said
    for folder in range(5):
        with Ledger(tmp_path / str(folder) / "ledger.sqlite") as ledger:
            assert len(ledger.history()) == 4


def test_what_was_written_before_a_kill_is_there_afterwards(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\nfrom filmloop.ledger import Ledger\n"
        "l = Ledger(pathlib.Path(sys.argv[1])); c = l.start_cycle().cycle_id\n"
        "l.begin_step(c, 'move'); l.keep_handle(c, 'move', 'h'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "ledger.sqlite"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    with Ledger(path) as ledger:
        row = ledger.open_cycle()
        assert row is not None
        assert [(s.name, s.handle) for s in ledger.steps(row.cycle_id)] == [("move", "h")]


def test_a_file_that_is_no_ledger_is_a_data_error_and_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, but somebody's notes" * 40)
    before = path.read_bytes()
    with pytest.raises(DataError, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(DataError, match="schema 99"):
        Ledger(path)


def test_a_folder_that_cannot_be_made_is_a_transient_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((TransientError, DataError)) as caught:
        Ledger(tmp_path / "file" / "ledger.sqlite")
    assert caught.value.hint


def test_an_unknown_cycle_is_a_data_error(ledger: Ledger) -> None:
    with pytest.raises(DataError, match="No cycle c-none"):
        ledger.cycle("c-none")
