from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from filmloop.core.errors import ConfigError
from filmloop.edge.cells import Board, Cell
from filmloop.edge.hosts import hand_over
from filmloop.edge.news import News
from filmloop.edge.ring import FrameRing, RingLayout

LAYOUT = RingLayout(frames=8, frame_shape=(1, 2), labelled=False)

# Writes every field of the staging cell, and as many letters to its board, with one number; the number never rests.
WRITER = """
import os, signal, sys
from filmloop.edge.hosts import take_over
from filmloop.edge.ring import STAGING_FIELDS
ring = take_over(sys.argv[1])
turn = ring.staging.get("taken")
while True:
    turn += 1
    ring.staging.write(dict.fromkeys(STAGING_FIELDS, turn))
    ring.boards["staging"].write({"turn": turn, "text": chr(97 + turn % 26) * (turn % 997)})
"""


@pytest.fixture
def ring():
    ring = FrameRing.new(LAYOUT)
    yield ring
    ring.close()


def writing(ring):
    bells = tuple(bell.fd for bell in ring.bells.values())
    return subprocess.Popen([sys.executable, "-c", WRITER, hand_over(ring)], pass_fds=(ring.fd, *bells))


def until(true, deadline_s=20.0):
    end_s = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end_s, "did not happen in time"


def is_one(values):
    return len(set(values.values())) == 1


def is_whole(said):
    return said["text"] == chr(97 + said["turn"] % 26) * (said["turn"] % 997)


def test_a_cell_begins_with_zeros_and_holds_what_was_written_last():
    cell = Cell(np.zeros(Cell.words(["a", "b"]), np.int64), ["a", "b"])
    assert cell.read() == {"a": 0, "b": 0}
    for turn in range(5):
        cell.write({"a": turn, "b": -turn})
        assert cell.read() == {"a": turn, "b": -turn}
        assert cell.get("b") == -turn


def test_a_cell_wants_all_of_its_fields():
    cell = Cell(np.zeros(Cell.words(["a", "b"]), np.int64), ["a", "b"])
    cell.write({"a": 1, "b": 2})
    with pytest.raises(KeyError):
        cell.write({"a": 3})
    assert cell.read() == {"a": 1, "b": 2}


def test_no_reader_sees_a_mixture_while_another_process_writes_as_fast_as_it_can(ring):
    writer = writing(ring)
    try:
        until(lambda: ring.staging.get("taken"))
        end_s, last, turns = time.monotonic() + 2.0, 0, set()
        while time.monotonic() < end_s:
            values = ring.staging.read()
            assert is_one(values), values
            assert values["taken"] >= last, "a value came back"
            last = values["taken"]
            turns.add(last)
            said = ring.boards["staging"].read()
            assert not said or is_whole(said)
            one = ring.staging.get("taken")
            assert one >= last
            last = one
    finally:
        writer.kill()
        writer.wait()
    assert len(turns) > 50, "the writer wrote meanwhile, however loaded the machine"


def test_a_writer_killed_at_any_moment_leaves_the_last_valid_value_and_the_next_one_goes_on_from_it(ring):
    for _ in range(10):
        before = ring.staging.get("taken")
        writer = writing(ring)
        until(lambda before=before: ring.staging.get("taken") > before + 100)
        # Half of the time of a turn is spent in the two writes; the moment is as random as the scheduler.
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        values, said = ring.staging.read(), ring.boards["staging"].read()
        assert is_one(values)
        assert is_whole(said)
        assert values["taken"] - said["turn"] in (0, 1), "the cell is written before the board"
        assert ring.staging.read() == values, "a second look sees the same"


def test_half_of_a_write_is_no_write():
    words = np.zeros(Cell.words(["a", "b"]), np.int64)
    cell = Cell(words, ["a", "b"])
    cell.write({"a": 1, "b": 1})
    former = words.copy()
    cell.write({"a": 2, "b": 2})
    # The writer died after its values and before the word that makes them valid.
    words[0] = former[0]
    assert cell.read() == {"a": 1, "b": 1}
    assert cell.get("a") == 1


def test_one_value_too_is_never_seen_before_it_is_valid():
    """The writer comes by in the middle of `get`: one whole write, and one that it dies in."""
    words = np.zeros(Cell.words(["a"]), np.int64)
    cell = Cell(words, ["a"])
    cell.write({"a": 1})

    class MeanwhileWrites(str):
        done = False

        def __eq__(self, other):
            if not self.done:
                self.done = True
                cell.write({"a": 2})
                cell.write({"a": 666})
                words[0] -= 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    assert cell.get(MeanwhileWrites("a")) == 2


def test_a_board_is_empty_at_first_and_holds_text_of_any_alphabet():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    assert board.read() == {}
    for value in ({"a": 1}, {"text": "Störung: 停止\n"}, {}, {"list": [1, None, {"x": 0.5}]}):
        board.write(value)
        assert board.read() == value


def test_a_board_too_small_for_its_text_refuses_it_and_keeps_the_last_one():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    longest = {"a": "x" * (board.characters - len('{"a":""}'))}
    board.write(longest)
    assert board.read() == longest
    with pytest.raises(ValueError, match="do not fit"):
        board.write({"a": longest["a"] + "x"})
    assert board.read() == longest


def test_news_that_do_not_fit_on_the_board_lose_their_longest_words_and_stop_no_stage():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    news = News(board)
    news.say(version="7", input={"hits_per_channel": [0.123] * 4096})
    news.problem("the disk is full")
    news.publish(at_once=True)
    said = board.read()
    assert said["version"] == "7"
    assert said["problem"] == "the disk is full"
    assert said.get("input") is None


def test_the_error_that_ends_a_stage_is_told_however_long_it_is():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    News(board).fatal(ConfigError("Ж" * 100_000, hint="shorten it"))
    told = board.read()["fatal"]
    assert told["error"] == "ConfigError"
    assert told["message"].startswith("ЖЖЖ")
    assert told["hint"] == "shorten it"


def test_a_stage_started_anew_keeps_what_its_former_life_said_but_not_its_end():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    former = News(board)
    former.more("swaps")
    former.fatal(ConfigError("no"))
    again = News(board)
    again.more("swaps")
    again.publish(at_once=True)
    assert (board.read()["swaps"], board.read()["fatal"]) == (2, None)


def test_news_are_published_at_most_twenty_times_a_second():
    board = Board(np.zeros(Board.bytes_for(4096), np.uint8))
    news, published = News(board), 0
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        before = int(board._sequence[0])
        news.say(now=time.monotonic())
        news.publish()
        published += int(board._sequence[0]) - before
    assert 2 <= published <= 11
