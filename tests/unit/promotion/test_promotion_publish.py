"""Alias moves: compare-and-set, audited, settled after a crash, walked back one by one."""

import threading
import time

import pytest

from filmloop.core.errors import ConfigError, DataError, TransientError
from filmloop.promotion.publish import OUTSIDE, promote, rollback, set_challenger, settle
from filmloop.testing.bundles import make_bundle
from filmloop.testing.fakes import MemoryRegistry, MemoryTrail


@pytest.fixture
def registry(tmp_path):
    """Five versions, no alias."""
    registry = MemoryRegistry(tmp_path / "registry")
    make_bundle(tmp_path / "bundle")
    for number in range(5):
        registry.register(tmp_path / "bundle", key=f"c{number}", description="", tags={}, metrics={})
    return registry


@pytest.fixture
def trail():
    return MemoryTrail()


def champions(registry, trail, *versions):
    before = ""
    for version in versions:
        promote(registry, trail, version=version, expected=before, who="cycle", why="better")
        before = version


def steps(trail, registry):
    """(from, to) of every ended move, oldest first."""
    return [(move.from_version, move.to_version) for move in reversed(trail.moves(registry.model))]


def test_a_promotion_moves_the_alias_and_says_who_when_why_from_where(registry, trail):
    champions(registry, trail, "1")
    move = promote(registry, trail, version="2", expected="1", who="cycle", why="1.8 % fewer nats", cycle_id="c7")
    assert registry.get("champion").version == "2"
    assert trail.moves(registry.model)[0] == move
    assert (move.alias, move.from_version, move.to_version) == ("champion", "1", "2")
    assert (move.who, move.why, move.cycle_id) == ("cycle", "1.8 % fewer nats", "c7")
    assert move.utc.endswith("Z")


def test_promoting_the_champion_again_changes_nothing(registry, trail):
    champions(registry, trail, "1")
    first = promote(registry, trail, version="2", expected="1", who="cycle", why="better")
    again = promote(registry, trail, version="2", expected="1", who="cycle", why="a rerun after kill -9")
    assert again == first
    assert steps(trail, registry) == [("", "1"), ("1", "2")]


def test_a_champion_that_is_not_the_expected_one_stays(registry, trail):
    champions(registry, trail, "1", "2")
    with pytest.raises(TransientError, match="is version 2, not version 1 as expected") as caught:
        promote(registry, trail, version="3", expected="1", who="cycle", why="better")
    assert caught.value.ids["champion"] == "2"
    assert registry.get("champion").version == "2"
    assert trail.pending_moves() == []


@pytest.mark.parametrize("move", [promote, set_challenger, rollback])
def test_a_version_that_is_not_there_gets_no_alias(registry, trail, move):
    champions(registry, trail, "1")
    options = {promote: {"version": "99", "expected": "1"}, set_challenger: {"version": "99"}, rollback: {"to": "99"}}
    with pytest.raises(DataError, match="no version 99"):
        move(registry, trail, who="anna", why="typo", **options[move])
    assert registry.get("champion").version == "1"
    assert trail.pending_moves() == []


def test_two_at_once_do_not_both_win(registry, trail, monkeypatch):
    champions(registry, trail, "1")
    outcomes = []
    look = registry.get

    def look_and_dawdle(name):
        found = look(name)
        time.sleep(0.01)  # long enough for all three to look before any of them moves
        return found

    monkeypatch.setattr(registry, "get", look_and_dawdle)

    def attempt(version):
        try:
            outcomes.append(promote(registry, trail, version=version, expected="1", who=version, why="race").to_version)
        except TransientError:
            outcomes.append("lost")

    threads = [threading.Thread(target=attempt, args=(version,)) for version in ("2", "3", "4")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1:] == ["lost", "lost"]
    assert len(steps(trail, registry)) == 2


def test_rolling_back_repeatedly_walks_back_and_then_refuses(registry, trail):
    champions(registry, trail, "1", "2", "3")
    assert rollback(registry, trail, who="anna", why="drift").to_version == "2"
    assert rollback(registry, trail, who="anna", why="drift").to_version == "1"
    with pytest.raises(ConfigError, match="no champion of local-mixer-4x8 before version 1") as caught:
        rollback(registry, trail, who="anna", why="drift")
    assert "filmloop models" in caught.value.hint
    assert registry.get("champion").version == "1"


def test_without_a_champion_there_is_nothing_to_roll_back_to(registry, trail):
    with pytest.raises(DataError, match=r"No version of local-mixer-4x8 is champion yet"):
        rollback(registry, trail, who="anna", why="drift")


def test_a_new_champion_after_a_rollback_rolls_back_to_what_was_live(registry, trail):
    champions(registry, trail, "1", "2", "3")
    rollback(registry, trail, who="anna", why="drift")
    promote(registry, trail, version="4", expected="2", who="cycle", why="better")
    assert rollback(registry, trail, who="anna", why="drift").to_version == "2"
    assert rollback(registry, trail, who="anna", why="drift").to_version == "1"


def test_rolling_back_to_a_named_version(registry, trail):
    champions(registry, trail, "1", "2", "3")
    move = rollback(registry, trail, who="anna", why="knows best", to="1")
    assert (move.from_version, move.to_version) == ("3", "1")
    with pytest.raises(ConfigError, match="champion already"):
        rollback(registry, trail, who="anna", why="again", to="1")


def test_rolling_back_to_an_alias_is_rolling_back_to_its_version(registry, trail):
    champions(registry, trail, "1", "2", "3")
    set_challenger(registry, trail, version="2", who="cycle", why="newest")
    with pytest.raises(ConfigError, match="is the champion already"):
        rollback(registry, trail, who="anna", why="typo", to="champion")
    move = rollback(registry, trail, who="anna", why="that one", to="challenger")
    assert (move.from_version, move.to_version) == ("3", "2")
    assert registry.aliases["champion"] == "2"


def test_rolling_back_passes_over_a_version_that_was_deleted(registry, trail):
    champions(registry, trail, "1", "2", "3")
    del registry._versions["2"]
    assert rollback(registry, trail, who="anna", why="drift").to_version == "1"


def test_rolling_back_before_there_was_a_champion_says_that_there_is_none(registry, trail, tmp_path):
    with pytest.raises(
        DataError, match=r"No version of .* is champion yet; there are 5 versions, the newest is 5"
    ) as caught:
        rollback(registry, trail, who="anna", why="drift")
    assert "filmloop models promote" in caught.value.hint
    with pytest.raises(DataError, match="There is no version of local-mixer-4x8 yet") as caught:
        rollback(MemoryRegistry(tmp_path / "empty"), trail, who="anna", why="drift")
    assert "`filmloop retrain` makes the first" in caught.value.hint


def test_a_champion_that_somebody_took_away_is_rolled_back_to(registry, trail):
    champions(registry, trail, "1", "2")
    del registry.aliases["champion"]
    assert rollback(registry, trail, who="anna", why="where is it?").to_version == "2"


def test_a_challenger_is_set_once_and_audited(registry, trail):
    set_challenger(registry, trail, version="1", who="cycle", why="trained", cycle_id="c1")
    set_challenger(registry, trail, version="1", who="cycle", why="trained", cycle_id="c1")
    set_challenger(registry, trail, version="2", who="cycle", why="trained", cycle_id="c2")
    assert registry.get("challenger").version == "2"
    assert [(move.alias, move.to_version) for move in trail.moves(registry.model)] == [
        ("challenger", "2"),
        ("challenger", "1"),
    ]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it and tidy up."""


@pytest.mark.parametrize("reached", [True, False])
def test_a_move_cut_off_by_a_crash_is_settled_by_what_the_registry_says(registry, trail, monkeypatch, reached):
    champions(registry, trail, "1")
    real = registry.set_alias

    def die(alias, version):
        if reached:
            real(alias, version)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry, "set_alias", die)
        with pytest.raises(Killed):
            promote(registry, trail, version="2", expected="1", who="cycle", why="better", cycle_id="c2")
    assert len(trail.pending_moves()) == 1
    settle(registry, trail)
    assert trail.pending_moves() == []
    assert steps(trail, registry) == ([("", "1"), ("1", "2")] if reached else [("", "1")])
    # The rerun of the same cycle ends like an undisturbed one.
    promote(registry, trail, version="2", expected="1", who="cycle", why="better", cycle_id="c2")
    assert steps(trail, registry) == [("", "1"), ("1", "2")]
    assert registry.get("champion").version == "2"


def test_a_registry_that_goes_away_in_the_middle_leaves_the_move_pending(registry, trail, monkeypatch):
    champions(registry, trail, "1")

    def away(alias, version):
        registry.away = True
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "set_alias", away)
        with pytest.raises(TransientError):
            promote(registry, trail, version="2", expected="1", who="cycle", why="better")
    with pytest.raises(TransientError):
        settle(registry, trail)
    assert len(trail.pending_moves()) == 1
    registry.away = False
    settle(registry, trail)
    assert trail.pending_moves() == []


def test_pending_moves_of_another_model_are_left_alone(registry, trail):
    other = trail.begin_move(
        promote(registry, trail, version="1", expected="", who="cycle", why="first").model_copy(
            update={"model": "other"}
        )
    )
    settle(registry, trail)
    assert [move_id for move_id, _ in trail.pending_moves()] == [other]


def test_a_move_made_in_the_mlflow_ui_enters_the_trail_and_can_be_rolled_back(registry, trail):
    champions(registry, trail, "1")
    registry.set_alias("champion", "3")
    settle(registry, trail)
    settle(registry, trail)
    assert steps(trail, registry) == [("", "1"), ("1", "3")]
    assert trail.moves(registry.model)[0].who == OUTSIDE
    assert rollback(registry, trail, who="anna", why="who did that?").to_version == "1"


def test_a_new_ledger_on_an_old_registry_takes_its_champion_over(registry, trail):
    registry.set_alias("champion", "2")
    move = promote(registry, trail, version="3", expected="2", who="cycle", why="better")
    assert steps(trail, registry) == [("", "2"), ("2", "3")]
    assert move.from_version == "2"
