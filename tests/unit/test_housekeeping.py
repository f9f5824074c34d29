from __future__ import annotations

import os
from pathlib import Path

import pytest

from filmloop import housekeeping
from filmloop.config.paths import UNSWEPT, Home
from filmloop.housekeeping import remove_old


def test_only_the_cycles_that_are_named_keep_their_bundles_and_every_cycle_keeps_its_report(home: Home) -> None:
    for number in range(4):
        cycle = home.cycles / f"c2026010{number}-000000-aaaa"
        (cycle / "bundle").mkdir(parents=True)
        (cycle / "report.md").write_text("kept")
        (home.moves / f"{cycle.name}-move-1").mkdir(parents=True)
        (home.launches / cycle.name).mkdir(parents=True)
    (home.launches / "endpoint-x.json").touch()
    cycles = sorted(home.cycles.iterdir())
    remove_old(home, keep_cycles={cycle.name for cycle in cycles[2:]}, keep_weights=1)
    assert [(cycle / "bundle").exists() for cycle in cycles] == [False, False, True, True]
    assert all((cycle / "report.md").exists() for cycle in cycles)
    assert sorted(path.name for path in home.launches.iterdir()) == [*(c.name for c in cycles[2:]), "endpoint-x.json"]
    assert sorted(path.name for path in home.moves.iterdir()) == [f"{cycle.name}-move-1" for cycle in cycles[2:]]


def test_a_move_that_has_left_something_keeps_its_journal_until_that_is_gone(home: Home) -> None:
    for number in range(2):
        (home.cycles / f"c{number}").mkdir(parents=True)
    journal = home.moves / "c0-move"
    journal.mkdir(parents=True)
    (journal / UNSWEPT).touch()
    remove_old(home, keep_cycles={"c1"}, keep_weights=1)
    assert journal.exists()
    (journal / UNSWEPT).unlink()
    remove_old(home, keep_cycles={"c1"}, keep_weights=1)
    assert not journal.exists()


def test_the_newest_downloaded_weights_stay(home: Home) -> None:
    for version in (9, 10, 11):
        folder = home.weights / "model" / str(version)
        folder.mkdir(parents=True)
        os.utime(folder, (version, version))
    remove_old(home, keep_cycles=(), keep_weights=2)
    assert sorted(path.name for path in (home.weights / "model").iterdir()) == ["10", "11"]


def test_an_empty_home_is_fine(home: Home) -> None:
    remove_old(home, keep_cycles=(), keep_weights=1)


def test_all_moves_are_looked_through_once_however_many_cycles_there_were(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (home.cycles / f"c{number}").mkdir(parents=True)
        (home.moves / f"c{number}-move").mkdir(parents=True)
    looked: list[Path] = []
    children = housekeeping._children
    monkeypatch.setattr(housekeeping, "_children", lambda folder: (looked.append(folder), children(folder))[1])
    remove_old(home, keep_cycles={"c49"}, keep_weights=1)
    assert [path.name for path in home.moves.iterdir()] == ["c49-move"]
    assert looked.count(home.moves) == 1
